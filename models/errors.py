"""The errors a user can cause: what enters is what was wrong, what leaves is one clear sentence or list.

Everything else that is raised is a defect of cidermill and shows a traceback.
"""

from typing import Any


class UserError(ValueError):
    """Bad usage or bad input. The command line prints `message` and `hint` and exits with 2.

    `message` says what failed, the value got and the values allowed; `hint` says the next step.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UnreadableArtifact(UserError):
    """A file that claims to be a model artifact but cannot be read as one (truncated, corrupt, unknown)."""


class UnsupportedOperators(UserError):
    """Every operator that a target or a runner cannot handle, collected and raised once.

    `operators` is a list of one-line descriptions: operator, module path, source file:line and shapes.
    """

    def __init__(self, where: str, operators: list[str], hint: str = ""):
        self.where, self.operators = where, operators
        lines = "\n".join(f"  - {line}" for line in operators)
        count = f"{len(operators)} operator{'s' if len(operators) != 1 else ''}"
        super().__init__(f"{where} cannot express {count} of this model:\n{lines}", hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.operators, self.hint)  # to come out of another process whole
