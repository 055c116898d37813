"""A TorchScript file -> an exported program at the shapes the user gives, through torch's own converter."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

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
    import torch

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
    import torch

    _check_storages(path)
    try:
        with quiet():
            return torch.jit.load(path, map_location="cpu")
    except Exception as error:  # RuntimeError with the C++ reader's reason
        raise UserError(
            f"{path} cannot be loaded as TorchScript: {_reason(error)}", "Save or copy the model again."
        ) from error


def _convert(path: Path, model: Any, bound: Bound, limits: dict[str, Limit]) -> Any:
    import torch
    from torch._export.converter import TS2EPConverter

    batch = synthetic(bound.inputs, 1, 0, limits).batches[0]
    arguments = tuple(as_declared(as_called(batch), bound.own_types).values())
    try:
        with quiet(), torch.no_grad():
            return TS2EPConverter(model, arguments).convert()
    except Exception as error:
        # the converter raises RuntimeError, ValueError, AssertionError and torch.export's own errors
        raise UserError(
            f"{path} is TorchScript that torch cannot turn into an exported program: {_reason(error)}", _HINT
        ) from error


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
