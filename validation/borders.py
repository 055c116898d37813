"""The border of an artifact: what users give becomes checked tensors, results become arrays of the declared types."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..models.errors import UserError
from .graph import Value

STORED_AS = {
    "float16": torch.float32, "float32": torch.float32, "float64": torch.float64, "bool": torch.bool, "int8": torch.int8,
    "uint8": torch.uint8, "int16": torch.int16, "uint16": torch.int32, "int32": torch.int32, "uint32": torch.int64, "int64": torch.int64,
    "int4": torch.int8, "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8, "uint4": torch.uint8, "uint6": torch.uint8,
}
WIDER = {("float64", "float32"), ("float64", "float16"), ("float32", "float16"), ("int64", "int32")}  # given, wanted


def check_inputs(
    given: dict[str, Any] | Sequence[Any], values: tuple[Value, ...], images: dict[str, str], owner: str
) -> dict[str, torch.Tensor]:
    """Name, convert and check what was given for `values`, the inputs of `owner`. Everything that does not fit is raised at once.

    images: channels ("RGB", "BGR", "L") of the inputs that may be given as pictures. A scalar may be given for [1], as Core ML has it.
    """
    wanted = {value.name: value for value in values}
    hint = f"it takes {describe(values)}"
    if not isinstance(given, dict):
        if len(given) != len(wanted):
            raise UserError(f"{owner} takes {len(wanted)} inputs, {len(given)} were given", hint)
        given = dict(zip(wanted, given))
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is not an input" for name in given if name not in wanted]
    arrays = {name: to_array(given[name], images.get(name, "")) for name in wanted if name in given}
    arrays = {name: array[None] if array.ndim == 0 and wanted[name].shape == (1,) else array for name, array in arrays.items()}
    problems += [problem for name, array in arrays.items() if (problem := misfit(array, wanted[name]))]
    if problems:
        raise UserError(f"inputs do not fit {owner}: {'; '.join(problems)}", hint)
    return {name: to_tensor(array, wanted[name].dtype) for name, array in arrays.items()}


def describe(values: tuple[Value, ...]) -> str:
    """Such as: ids: int32 [1, 16], image: float32 [1, 3, ?, ?]"""
    shapes = [", ".join("?" if size is None else str(size) for size in value.shape) for value in values]
    return ", ".join(f"{value.name}: {value.dtype} [{shape}]" for value, shape in zip(values, shapes))


def to_array(item: Any, channels: str) -> np.ndarray:
    """Array, tensor, nested list, or PIL image (-> float32 [1, C, H, W], 0 to 255, in the model's order of channels)."""
    if isinstance(item, torch.Tensor):
        return item.detach().cpu().numpy()
    if channels and hasattr(item, "convert"):
        pixels = np.atleast_3d(np.asarray(item.convert("L" if channels == "L" else "RGB"), np.float32))
        return pixels[..., ::-1 if channels == "BGR" else 1].transpose(2, 0, 1)[None]
    return np.asarray(item)


def misfit(array: np.ndarray, wanted: Value) -> str:
    """What is wrong with an input, or nothing."""
    given = str(array.dtype)
    allowed = given == wanted.dtype or (given, wanted.dtype) in WIDER or (
        wanted.dtype in STORED_AS and array.dtype.kind in "biu" and np.can_cast(array.dtype, wanted.dtype, "safe"))
    if array.ndim != len(wanted.shape) or any(want not in (None, have) for want, have in zip(wanted.shape, array.shape)) or not allowed:
        return f"{wanted.name} is {given} {list(array.shape)}"
    if (given, wanted.dtype) == ("int64", "int32") and array.size and np.abs(array).max() > np.iinfo(np.int32).max:
        return f"{wanted.name} holds numbers beyond int32"
    return ""


def to_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """An input in its declared type."""
    array = np.ascontiguousarray(array, dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def as_array(result: Any, declared: Value, precision: str) -> Any:
    """A result as numpy in its declared type; what was computed without rounding stays float32. Classes and dictionaries pass."""
    if not isinstance(result, torch.Tensor):
        return result
    wanted = "float32" if precision == "float32" and declared.dtype == "float16" else declared.dtype
    return result.contiguous().numpy().astype(wanted)
