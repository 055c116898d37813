"""cidermill presses trained PyTorch models into proven artifacts for Apple devices."""

__version__ = "0.1.0"
