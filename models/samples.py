"""Inputs for validation and calibration: synthetic ones from the model's input specs, or the user's own,
checked against them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .inputs import listing, shape_text
from .pictures import PixelSpec, as_planes, check_pixels, drawn_pixels, in_colours
from .source import Limit, Samples, TensorSpec
from .user_code import current_folder_importable, import_by_name

MOST_SAMPLES = 1024
_HINT = (
    "Give an .npz with one array per input (leading dimension: samples), or package.module:function that"
    " returns an iterable of dicts."
)


def synthetic(
    specs: tuple[TensorSpec, ...],
    count: int = 1,
    seed: int = 0,
    limits: dict[str, Limit] | None = None,
) -> Samples:
    """`count` random batches: floats ~ N(0, 1), integers within `limits` (by input), masks all ones."""
    generator = np.random.default_rng(seed)
    limits = limits or {}
    batches = tuple(
        {spec.name: _draw(generator, spec, limits.get(spec.name)) for spec in specs} for _ in range(count)
    )
    return Samples("synthetic", batches, seed)


def load_samples(
    text: str, specs: tuple[TensorSpec, ...], most: int = MOST_SAMPLES, option: str = "--samples"
) -> Samples:
    """FILE.npz or module:function -> at most `most` checked batches in the dtypes of `specs`. `option` is
    what errors call it."""
    if names_function(text):
        items = _call(text, specs, most, option)
    else:
        items = _read_npz(Path(text), specs, most, f"{option} {Path(text)}")
    if not items:
        raise UserError(f"{option} {text} holds no samples.", _HINT)
    return Samples("real", tuple(items))


def given_samples(items: Iterable[Any], specs: tuple[TensorSpec, ...]) -> Samples:
    """Dicts, tuples or batches of arrays or tensors, as Python gives them, or one dict -> checked batches in
    the dtypes of `specs`. Raises UserError."""
    if hasattr(items, "shape"):
        raise UserError(
            f"samples is one array of shape {tuple(items.shape)}, not a list of samples.",
            "Give [{name: array}, ...], or [(array,), ...] in the order of the inputs.",
        )
    samples: list[dict[str, np.ndarray]] = []
    for index, item in enumerate([items] if isinstance(items, Mapping) else items):
        samples += _samples_in(item, specs, f"samples[{index}]")
        if len(samples) >= MOST_SAMPLES:
            break
    if not samples:
        raise UserError("samples holds no samples.", "Give [{name: array}, ...], one of them at least.")
    return Samples("real", tuple(samples[:MOST_SAMPLES]))


def names_function(text: str) -> bool:
    """Whether it is module:function rather than a file."""
    return re.fullmatch(r"[\w.]+:[\w.]+", text) is not None and not Path(text).exists()


def check_file(path: Path, option: str = "--samples") -> None:
    """Raises UserError where there is no such file."""
    if not path.is_file():
        raise UserError(f"{option} {path} is not a file.", _HINT)


@contextmanager
def blaming(samples: Samples, index: int) -> Iterator[None]:
    """While a model runs on the user's sample `index`: what torch raises there (a token beyond the
    vocabulary) becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        if samples.kind != "real" and not is_index_error(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = (
            "Integer inputs must lie within the model's vocabulary or table, as when the model is called in"
            " Python."
        )
        if samples.kind != "real":
            raise UserError(
                f"The model does not run on a synthetic sample: {type(error).__name__}: {reason}",
                "Give inputs that it takes: --samples FILE.npz, or --samples package.module:function.",
            ) from error
        raise UserError(
            f"The model fails on sample {index} of yours: {type(error).__name__}: {reason}", hint
        ) from error


def is_index_error(error: BaseException) -> bool:
    """Whether a model looked for what its tables do not hold."""
    out = re.search(r"out of (range|bounds)|out-of-bounds|index.* (size|bounds)", str(error))
    return isinstance(error, IndexError) or out is not None


def is_mask(spec: TensorSpec) -> bool:
    return spec.dtype == "bool" or "mask" in spec.name


def _draw(generator: np.random.Generator, spec: TensorSpec, limit: Limit | None) -> np.ndarray:
    """Integers that nothing is known about are 0 or 1: valid as a mask, a segment and an index. Positions
    count up."""
    if limit is not None:
        drawn = generator.integers(limit.low, limit.high, size=spec.shape).astype(spec.dtype)
        return np.sort(drawn, -1) if limit.ascending and drawn.ndim else drawn
    if is_mask(spec):
        return np.ones(spec.shape, spec.dtype)
    if spec.dtype == "int32" and "position" in spec.name:
        return np.broadcast_to(
            np.arange(spec.shape[-1] if spec.shape else 1, dtype=np.int32), spec.shape
        ).copy()
    if spec.dtype == "int32":
        return generator.integers(0, 2, size=spec.shape).astype(np.int32)
    noise = generator.standard_normal(spec.shape, dtype=np.float32)
    return (drawn_pixels(noise) if isinstance(spec, PixelSpec) else noise).astype(spec.dtype)


def _read_npz(
    path: Path, specs: tuple[TensorSpec, ...], most: int, where: str
) -> list[dict[str, np.ndarray]]:
    if not path.is_file():
        raise UserError(f"{where} is not a file.", _HINT)
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UserError(f"{where} is a single array (.npy), whose input it does not name.", _HINT)
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except Exception as error:  # ValueError, BadZipFile, EOFError, OSError, zlib.error
        reason = "it holds pickled objects, or is none" if "pickle" in str(error) else error
        raise UserError(f"{where} cannot be read as an .npz of plain arrays ({reason}).", _HINT) from error
    _check_names(arrays, specs, where)
    stacks = {spec.name: _stack(arrays[spec.name], spec, where) for spec in specs}
    counts = {name: len(stack) for name, stack in stacks.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"{where} has different numbers of samples: {counts}.", "Store one sample of every input per row."
        )
    total = min(next(iter(counts.values())), most)
    return [
        {spec.name: _checked(stacks[spec.name][row], spec, f"{where}, sample {row}") for spec in specs}
        for row in range(total)
    ]


def _stack(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    """-> [samples, *spec.shape] from one sample, a stack of samples, or a batch of them where the model's own
    batch is 1."""
    if isinstance(spec, PixelSpec):
        array = as_planes(array, spec)
    if array.shape == spec.shape:
        return array[None]
    if array.shape[1:] == spec.shape:
        return array
    if spec.shape[:1] == (1,) and array.ndim == len(spec.shape) and array.shape[1:] == spec.shape[1:]:
        return array[:, None]
    raise _wrong_shape(array, spec, where)


def _call(text: str, specs: tuple[TensorSpec, ...], most: int, option: str) -> list[dict[str, np.ndarray]]:
    """Stops as soon as it has enough: the user's function may yield for ever, and each of its items may be a
    batch of many samples."""
    where, samples = f"{option} {text}", []
    with current_folder_importable():
        for index, item in enumerate(_items(text, where, option)):
            samples += _samples_in(item, specs, f"{where}, sample {index}")
            if len(samples) >= most:
                break
    return samples[:most]


def _items(text: str, where: str, option: str) -> Iterator[Any]:
    """What the user's function yields, one by one; a mapping that it returns is one item. Whatever it raises
    becomes a UserError."""
    try:
        function = import_by_name(text, option)
        items = function() if callable(function) else function
        if not isinstance(items, Iterable):
            raise UserError(f"{where} returned {type(items).__name__}, which is not iterable.", _HINT)
        yield from [items] if hasattr(items, "keys") else items
    except UserError:
        raise
    except SystemExit as error:  # a script that parses our own arguments, or ends when it is imported
        hint = "Guard what only a script should do with: if __name__ == '__main__'."
        raise UserError(f"{where} ended the program (sys.exit({error.code!r})).", hint) from error
    except Exception as error:
        raise UserError(f"{where} failed with {type(error).__name__}: {error}", _HINT) from error


def _samples_in(item: Any, specs: tuple[TensorSpec, ...], where: str) -> list[dict[str, np.ndarray]]:
    """One sample, or the rows of a batch of them (as a DataLoader yields) where every input's own batch is
    1."""
    if not hasattr(item, "keys"):
        values = item if isinstance(item, (tuple, list)) else (item,)
        if len(values) != len(specs):
            hint = (
                "Leave out what is no input of the model, such as labels."
                if len(values) > len(specs)
                else _HINT
            )
            raise UserError(
                f"{where} has {len(values)} values, the model takes {len(specs)}: {listing(specs)}.", hint
            )
        item = {spec.name: value for spec, value in zip(specs, values)}
    _check_names(item, specs, where)
    arrays = {spec.name: _as_array(item[spec.name], spec, where) for spec in specs}
    counts = {
        len(array) if spec.shape[:1] == (1,) and array.shape[1:] == spec.shape[1:] else 0
        for spec, array in zip(specs, arrays.values())
    }
    rows = counts.pop() if len(counts) == 1 else 0
    if rows > 1:
        return [
            {spec.name: _one(arrays[spec.name][row], spec, f"{where}, row {row}") for spec in specs}
            for row in range(rows)
        ]
    return [{spec.name: _one(arrays[spec.name], spec, where) for spec in specs}]


def _one(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    """One sample of exactly the input's shape; a batch dimension of 1 may be left out."""
    if spec.shape[:1] == (1,) and array.shape == spec.shape[1:]:
        array = array[None]
    if array.shape != spec.shape:
        raise _wrong_shape(array, spec, where)
    return _checked(array, spec, where)


def _as_array(value: Any, spec: TensorSpec, where: str) -> np.ndarray:
    """numpy array of an array, a list or a torch tensor (known by its methods, so that torch stays
    unimported)."""
    try:
        if isinstance(spec, PixelSpec):
            return as_planes(np.asarray(in_colours(value, spec)), spec)
        if not hasattr(value, "detach"):
            return np.asarray(value)
        value = value.detach().cpu()
        array: np.ndarray = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        return array  # numpy has no bfloat16
    except (
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:
        # lists of unequal lengths; sparse or quantized tensors
        raise UserError(
            f"{where}: input {spec.name!r} cannot be read as an array ({error}).",
            "Give one array of numbers for each input.",
        ) from error


def _check_names(given: Any, specs: tuple[TensorSpec, ...], where: str) -> None:
    names, own = set(given.keys()), [spec.name for spec in specs]
    missing, unknown = [name for name in own if name not in names], sorted(map(str, names - set(own)))
    if missing or unknown:
        parts = ("lacks", missing), ("has unknown", unknown)
        complaint = " and ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        raise UserError(f"{where} {complaint}. The model's inputs are: {listing(specs)}.", _HINT)


def _checked(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    """One sample in the dtype of its spec. Kinds must agree (no floats for integers), values must fit and be
    finite."""
    if array.dtype == object or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise UserError(
            f"{where}: input {spec.name!r} is {array.dtype}, the model takes {spec.dtype}.",
            "Convert the array first.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise UserError(
            f"{where}: input {spec.name!r} has {count} NaN or infinite values.", "Clean the samples."
        )
    if isinstance(spec, PixelSpec):
        check_pixels(array, spec, where)
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array).astype(spec.dtype).reshape(spec.shape)
    fits = np.isfinite(result).all() if result.dtype.kind == "f" else (result == array).all()
    if not fits:
        values = f"{array.min()} to {array.max()}"
        raise UserError(
            f"{where}: input {spec.name!r} has values that {spec.dtype} cannot hold: {values}.", "Scale them."
        )
    return result


def _wrong_shape(array: np.ndarray, spec: TensorSpec, where: str) -> UserError:
    own = shape_text(spec.shape)
    message = f"{where}: input {spec.name!r} has shape {shape_text(array.shape)}, the model takes {own}."
    return UserError(message, f"Give {own}, or Nx{own} in an .npz of N samples.")
