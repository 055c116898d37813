"""A TorchScript file -> an exported program at the shapes the user gives, through torch's own converter, or
by a run of TorchScript's interpreter where that does not know what the file holds."""

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .archives import read_member
from .border import as_declared
from .digest import content_of
from .errors import UserError
from .forward import Bound, bind, for_inference, try_once, vocabulary
from .programs import open_program
from .quiet import quiet
from .samples import synthetic
from .source import Limit, Source
from .source_kind import LoadOptions
from .tensors import as_called

_HINT = "Convert from the Python module instead (torch.export.save), or rewrite what torch names above."


def load_torchscript(path: Path, options: LoadOptions) -> Source:
    """Its inputs have the names that the user gave."""
    model, warnings = for_inference(_read(path), str(path))
    bound = bind(model, options.inputs, str(path))
    specs = bound.inputs
    limits = vocabulary(bound, model, {})
    try_once(bound.module, specs, limits, str(path), "Correct --input.")
    converted = _convert(path, model, bound, limits)
    opened = open_program(converted, (), str(path))
    if len(opened.inputs) != len(specs):
        count = f"{len(opened.inputs)} of {len(specs)} inputs"
        raise UserError(
            f"{path}: the conversion of the TorchScript kept {count}.", "Leave out inputs that are not used."
        )
    limits = {
        spec.name: opened.limits[own.name]
        for spec, own in zip(specs, opened.inputs)
        if own.name in opened.limits
    }
    sha256 = content_of(path).sha256
    return Source(
        path, "torchscript", sha256, opened.module, specs, opened.program,
        limits=limits, warnings=(*warnings, *bound.warnings),
    )  # fmt: skip


class _Anything:
    """Stands for every class and function that a pickle names, so that reading it runs none of them."""

    def __new__(cls, *arguments: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        return None


class _Storages(pickle.Unpickler):
    """Collects what a pickle says of its tensors' storages: ("storage", type, key, device, elements)."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.storages: list[tuple[Any, ...]] = []

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Anything,), {"__module__": module})

    def persistent_load(self, reference: Any) -> Any:
        self.storages.append(reference)
        return _Anything()


def _check_storages(path: Path) -> None:
    """torch's C++ reader believes the sizes that the pickles give, and reads beyond the end of a storage that
    is shorter (torch 2.13)."""
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
    needed = {
        name: size
        for folder in ("data", "constants")
        if f"{folder}.pkl" in sizes
        for name, size in _storages(path, folder).items()
    }
    short = [
        f"{name} has {sizes.get(name, 0)} of {size} bytes"
        for name, size in needed.items()
        if sizes.get(name, 0) < size
    ]
    if short:
        raise UserError(f"{path} is incomplete: {', '.join(short[:3])}.", "Save or copy the model again.")


def _storages(path: Path, folder: str) -> dict[str, int]:
    """-> {"data/3": bytes that the tensors of data.pkl need of it}"""
    reader = _Storages(read_member(path, f"{folder}.pkl"))
    try:
        with quiet():  # torch warns about its own storage classes
            reader.load()
            return {
                f"{folder}/{key}": count * getattr(torch, kind.__name__)().element_size()
                for _, kind, key, _, count in reader.storages
            }
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(
            f"{path}: {folder}.pkl is damaged ({_reason(error)}).", "Save or copy the model again."
        ) from error


def _read(path: Path) -> Any:
    _check_storages(path)
    try:
        with quiet():
            return torch.jit.load(path, map_location="cpu")
    except Exception as error:  # RuntimeError with the C++ reader's reason
        raise UserError(
            f"{path} cannot be loaded as TorchScript: {_reason(error)}", "Save or copy the model again."
        ) from error


def _convert(path: Path, model: Any, bound: Bound, limits: dict[str, Limit]) -> Any:
    from torch._export.converter import TS2EPConverter

    batch = synthetic(bound.inputs, 1, 0, limits).batches[0]
    arguments = tuple(as_declared(as_called(batch), bound.own_types).values())
    try:
        with quiet(), torch.no_grad():
            return TS2EPConverter(model, arguments).convert()
    except Exception as error:
        # the converter raises RuntimeError, ValueError, AssertionError and torch.export's own errors
        if "prim::SetAttr" in str(model.inlined_graph):
            raise _refused(path, f"it changes attributes of its own ({_reason(error)})") from error
        return _interpreted(path, model, arguments)


class _Interpreted(torch.nn.Module):
    """A script that torch.export may run: its loops and branches are taken as they fall for the sizes that
    the inputs have. Its tensors keep the names that they have in the script."""

    def __init__(self, script: Any):
        super().__init__()
        self._parameters, self._buffers, self._modules = script._parameters, script._buffers, script._modules
        self.training = script.training
        self._call = script.__call__  # the script itself would become a child

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Scripts hold plain tensors, which torch.export takes for no parameters."""
        for name, tensor in super().named_parameters(*args, **kwargs):
            yield name, torch.nn.Parameter(tensor, requires_grad=False)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._call(*inputs)


def _interpreted(path: Path, script: Any, arguments: tuple[torch.Tensor, ...]) -> Any:
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(_Interpreted(script), arguments, strict=False)
    except Exception as error:  # what the interpreter raises is a RuntimeError around anything
        if "data-dependent" not in str(error):
            raise _refused(path, _reason(error)) from error
        raise UserError(
            f"{path}: the model decides by the values of its data{_decision(str(error))}, so it has no fixed"
            " graph.",
            "Replace the branch by torch.where, loop as often as sizes tell, and save it again.",
        ) from error


def _decision(trace: str) -> str:
    """The line of the model's own code that an error of the interpreter points at, in brackets."""
    before = (
        trace.partition("<--- HERE")[0]
        if "original code" not in trace
        else (trace.partition("original code")[2].partition("<--- HERE")[0])
    )
    lines = [line.strip() for line in before.splitlines()]
    return f" ({lines[-2]})" if len(lines) > 1 and lines[-1].strip("~ ") == "" else ""


def _refused(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is TorchScript that torch cannot turn into an exported program: {reason}", _HINT
    )


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
