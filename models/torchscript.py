"""A TorchScript file -> an exported program at the shapes the user gives, through torch's own converter."""
from pathlib import Path
from typing import Any

from .errors import UserError
from .forward import bind, try_once, vocabulary
from .inputs import InputSpec
from .programs import describe
from .quiet import quiet
from .samples import synthetic
from .source import TensorSpec

_HINT = "Convert from the Python module instead (torch.export.save), or rewrite what torch names above."


def load_torchscript(path: Path, given: tuple[InputSpec, ...]) -> tuple[Any, Any, tuple[TensorSpec, ...], dict]:
    """-> (program or None, module, inputs, integer limits) as `programs.describe`, under the names that the user gave."""
    model = _read(path)
    module, specs = bind(model, given, str(path))
    limits = vocabulary(module, specs)
    try_once(module, specs, limits, str(path), "Correct --input.")
    converted = _convert(path, model, specs, limits)
    program, converted_module, own, found = describe(converted, (), str(path))
    if len(own) != len(specs):
        kept = f"{len(own)} of {len(specs)} inputs"
        raise UserError(f"{path}: the conversion of the TorchScript kept {kept}.", "Leave out inputs that are not used.")
    limits = {spec.name: found[old.name] for spec, old in zip(specs, own) if old.name in found}
    return program, converted_module, specs, limits


def _read(path: Path) -> Any:
    import torch

    try:
        with quiet():
            return torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # RuntimeError with the C++ reader's reason
        raise UserError(f"{path} cannot be loaded as TorchScript: {_reason(error)}", "Save or copy the model again.") from error


def _convert(path: Path, model: Any, specs: tuple[TensorSpec, ...], limits: dict) -> Any:
    import torch
    from torch._export.converter import TS2EPConverter

    batch = synthetic(specs, 1, 0, limits).batches[0]
    tensors = [torch.from_numpy(batch[spec.name]) for spec in specs]
    arguments = tuple(tensor.long() if tensor.dtype == torch.int32 else tensor for tensor in tensors)
    try:
        with quiet(), torch.no_grad():
            return TS2EPConverter(model, arguments).convert()
    except Exception as error:  # the converter raises RuntimeError, ValueError, AssertionError and torch.export's own errors
        raise UserError(f"{path} is TorchScript that torch cannot turn into an exported program: {_reason(error)}", _HINT) from error


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
