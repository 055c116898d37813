"""A torch.save file -> the object in it, running none of the file's code unless the user trusts it.

Which classes a pickle imports is read from its opcodes. A file of tensors and torch.nn modules goes through
torch's weights-only unpickler with exactly those classes allowed; anything else needs `--trust-pickle`.
"""

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .archives import read_member
from .errors import UserError
from .quiet import quiet
from .user_code import current_folder_importable

_COMPUTED = "a name computed while loading"
_LEGACY_PICKLES = 4  # magic number, protocol, system, object; torch/serialization.py _legacy_save
_STRINGS = (
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "UNICODE",
    "SHORT_BINSTRING",
    "BINSTRING",
    "STRING",
)
_ACTIVATIONS = (  # torch.nn.Transformer*Layer keep their activation as a function
    *(
        f"torch.nn.functional.{name}"
        for name in """
            relu gelu silu mish elu selu celu leaky_relu relu6 hardswish hardsigmoid hardtanh softplus
            logsigmoid tanh sigmoid softsign
        """.split()
    ),
    *(f"torch._C._nn.{name}" for name in ("gelu", "softplus", "log_sigmoid", "mish")),
)


def load_object(path: Path, legacy: bool, trust: bool) -> Any:
    """-> the saved object: an nn.Module, a state dict, or whatever a trusted file holds. Tensors on the
    CPU."""
    names = imported_names(path, legacy)
    classes = {name: target for name in names if (target := _torch_nn(name)) is not None}
    foreign = [name for name in names if name not in classes and name not in _harmless()]
    if foreign and not trust:
        raise UserError(
            f"{path} is a pickle that would import code: {', '.join(foreign)}. None of it was run.",
            "If you trust where the file comes from, add --trust-pickle; or save only the weights, "
            "torch.save(model.state_dict(), FILE), and give --model-class.",
        )
    if legacy and classes and not trust:
        raise UserError(
            f"{path} is a whole module in the format from before torch 1.6, which torch cannot load without"
            " running code of the file.",
            "If you trust where the file comes from, add --trust-pickle; or load it in Python and torch.save"
            " it again.",
        )
    return _load_trusted(path) if foreign or (legacy and classes) else _load_weights_only(path, classes)


def imported_names(path: Path, legacy: bool) -> tuple[str, ...]:
    """The classes and functions that loading the file would import, from its opcodes alone."""
    if not legacy:
        return globals_of(read_member(path, "data.pkl"))
    names: dict[str, None] = {}
    with path.open("rb") as stream:
        for _ in range(_LEGACY_PICKLES):
            names.update(dict.fromkeys(_globals(stream, path)))
    return tuple(names)


def globals_of(data: bytes, where: str = "the pickle") -> tuple[str, ...]:
    """Every "module.name" that a pickle imports, in order, without loading it."""
    return tuple(dict.fromkeys(_globals(data, where)))


def torch_only(names: tuple[str, ...]) -> bool:
    """True where nothing but tensors and plain containers is imported."""
    return all(name in _harmless() for name in names)


def _globals(stream: Any, where: Any) -> Iterator[str]:
    """Follows strings through the memo, which is where STACK_GLOBAL takes its two names from."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(stream)
        for operation, argument, _ in operations:
            if operation.name in _STRINGS:
                strings.append(argument)
            elif operation.name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if argument is None else int(argument)] = strings[-1] if strings else _COMPUTED
            elif operation.name in ("BINGET", "LONG_BINGET", "GET"):
                strings.append(memo.get(int(argument), _COMPUTED))
            elif operation.name in ("GLOBAL", "INST"):
                yield _modern_name(*argument.split(" ", 1))
            elif operation.name == "STACK_GLOBAL":
                yield _modern_name(*strings[-2:]) if len(strings) > 1 else _COMPUTED
            elif operation.name in ("EXT1", "EXT2", "EXT4"):
                yield f"extension {argument} of copyreg"
    except Exception as error:
        # pickletools raises ValueError, struct and unicode errors on bytes that are not a pickle
        raise UserError(
            f"{where} does not hold a readable pickle ({error}).", "Save or copy the model again."
        ) from error


def _modern_name(module: str, name: str) -> str:
    """Protocol 2 writes Python 2 names: `__builtin__.set` is `builtins.set`."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _torch_nn(name: str) -> Any:
    """The torch.nn module class or activation of that name, else None. Looks only into modules that torch has
    already imported."""
    import torch

    module_name, _, attribute = name.rpartition(".")
    target = vars(sys.modules[module_name]).get(attribute) if module_name in sys.modules else None
    if name in _ACTIVATIONS:
        return target
    is_layer = (
        isinstance(target, type) and issubclass(target, torch.nn.Module) and target.__module__ == module_name
    )
    return target if is_layer and module_name.startswith("torch.nn.modules.") else None


def _harmless() -> dict[str, Any]:
    """The weights-only unpickler's own list: storages, dtypes, tensor rebuilders, OrderedDict, set."""
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed: dict[str, Any] = _get_allowed_globals()
    return allowed


def _load_weights_only(path: Path, classes: dict[str, Any]) -> Any:
    import torch

    with torch.serialization.safe_globals([(target, name) for name, target in classes.items()]):
        return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))


def _load_trusted(path: Path) -> Any:
    import torch

    with current_folder_importable():
        return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=False))


def _read(path: Path, load: Callable[[], Any]) -> Any:
    try:
        with quiet():
            return load()
    except (ImportError, AttributeError) as error:
        hint = (
            "Run from the folder that holds the model's source, or save the model with torch.export.save,"
            " which needs no classes."
        )
        raise UserError(f"{path} needs a class that cannot be imported here: {error}", hint) from error
    except Exception as error:  # of damaged files: RuntimeError, UnpicklingError, EOFError, KeyError and more
        raise UserError(
            f"{path} cannot be loaded: {type(error).__name__}: {_reason(error)}",
            "Save or copy the model again.",
        ) from error


def _reason(error: Exception) -> str:
    """The first line that says something; torch puts the unpickler's own words below a page of advice."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
