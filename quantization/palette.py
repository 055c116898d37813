"""Lookup tables: a weight enters, a Palette with float16-exact tables of least squared error leaves.

A float16 weight has at most 65,536 distinct values, however many elements it has: large weights are clustered
as histograms, groups of channels as sorted values (see palette_line.py), entries that hold several weights in
palette_vector.py. Deterministic.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from .affine import LARGEST_FLOAT16, SMALLEST_SCALE
from .exact_scales import on_grid
from .palette_line import Line, cuts_between, fit_tables, line_of, runs
from .palette_vector import LARGEST_SCALE, cluster_vectors
from .weight import CompressedWeight, Palette, from_rows, pieces, to_rows

KEYS = 65536  # float16 bit patterns
AT_ONCE = 1 << 19  # elements of the groups that are clustered together
SHORT = 4096  # a table of all keys costs more than a search for rows of fewer elements
LARGEST_CODE = 127
# tried for int8 tables, relative to the one that clips nothing
SCALES = torch.linspace(0.75, 1.5, 97, dtype=torch.float64)
REFITS = 3  # of an int8 table: assign again, fit again


def palettize(
    weight: torch.Tensor,
    bits: int,
    groups: tuple[int, ...],
    mask: torch.Tensor | None = None,
    vector: int = 1,
    vector_axis: int = 0,
    scaled: bool = False,
    importance: torch.Tensor | None = None,
    table_bits: int = 16,
) -> Palette:
    """weight float32 [64, 128] within float16's range, groups (4, 1) -> indices [64, 128], lut [4, 1, 2^bits,
    1].

    mask (bool [64, 128]): only the survivors are fitted. importance (not negative, [64, 128]): what a squared
    error counts. vector 2 or 4: an entry holds as many weights, neighbours along `vector_axis` (the output
    channels, as in coremltools: the input axis of a convolution may have 1 or 3) -> indices [32, 128].
    scaled: each channel of `vector_axis` is divided by a float16 scale first. table_bits 8: the entries are
    int8 codes times one float16 scale a table.
    Where a group has no more distinct values than the table has entries, the table holds exactly them, the
    last one repeated.
    """

    def fit(weight: torch.Tensor, importance: torch.Tensor | None) -> Palette:
        if vector > 1:
            return cluster_vectors(weight, bits, groups, vector, vector_axis, mask, importance, table_bits)
        return _cluster_values(weight, bits, groups, mask, importance, table_bits)

    return _scaled(weight, fit, vector_axis, mask, importance) if scaled else fit(weight, importance)


def _cluster_values(
    weight: torch.Tensor,
    bits: int,
    groups: tuple[int, ...],
    mask: torch.Tensor | None,
    importance: torch.Tensor | None,
    table_bits: int,
) -> Palette:
    rows = to_rows(weight, groups)
    survives, counts = (None if part is None else to_rows(part, groups) for part in (mask, importance))
    indices, tables, scales = (
        torch.empty(rows.shape, dtype=torch.uint8),
        torch.empty(len(rows), 2**bits),
        torch.empty(len(rows), 1),
    )
    step = max(1, AT_ONCE // rows.shape[1]) if rows.shape[1] <= KEYS else 1

    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        keys = _keys(rows[part])
        line = _line(
            keys, None if survives is None else survives[part], None if counts is None else counts[part]
        )
        fitted = fit_tables(line, 2**bits)
        if table_bits == 8:
            fitted, scales[part] = _int8_tables(line, fitted)
        tables[part] = fitted.half().float()
        indices[part] = _nearest(keys, tables[part])

    table_scale = None if table_bits == 16 else scales.reshape(*groups, 1, 1)
    return Palette(
        bits,
        from_rows(indices, weight.shape, groups),
        tables.reshape(*groups, 2**bits, 1),
        table_scale=table_scale,
    )


def _keys(rows: torch.Tensor) -> torch.Tensor:
    """int16 [n, elements], in the order of the values rounded to float16; -0 is -1."""
    pattern = rows.half().view(torch.int16)
    return (pattern >> 15).bitwise_and_(0x7FFF).bitwise_xor_(pattern)


def _values(keys: torch.Tensor) -> torch.Tensor:
    """The inverse of `_keys`, float64; the patterns of infinities and NaN, which no weight has, become the
    largest finite values."""
    values = (keys ^ ((keys >> 15) & 0x7FFF)).view(torch.float16).double()
    return values.nan_to_num(nan=torch.inf).copysign(keys).clamp(-65504, 65504)


def _all_values() -> torch.Tensor:
    """float64 [65536], ascending."""
    return _values(torch.arange(-KEYS // 2, KEYS // 2, dtype=torch.int32).to(torch.int16))


def _line(keys: torch.Tensor, mask: torch.Tensor | None, importance: torch.Tensor | None) -> Line:
    """What is clustered. A pruned or unimportant value weighs nothing; where all weigh nothing, all count the
    same."""
    if keys.shape[1] > KEYS:
        return _histogram(
            keys[0], None if mask is None else mask[0], None if importance is None else importance[0]
        )
    if mask is None and importance is None:
        ordered = _values(torch.from_numpy(np.sort(keys.numpy(), axis=1)))
        return line_of(ordered, torch.ones((), dtype=torch.float64).expand_as(ordered))
    counts = torch.ones(keys.shape, dtype=torch.float64) if importance is None else importance.double()
    counts = counts if mask is None else counts * mask
    counts = torch.where(counts.any(1, keepdim=True), counts, 1.0)
    order = torch.from_numpy(np.argsort(keys.numpy(), axis=1, kind="stable"))
    return line_of(_values(keys.gather(1, order)), counts.gather(1, order))


def _histogram(keys: torch.Tensor, mask: torch.Tensor | None, importance: torch.Tensor | None) -> Line:
    """keys [elements] -> a Line of one row: the distinct values and what they weigh together."""
    counts = importance if importance is None or mask is None else importance * mask
    counts = mask if counts is None else counts
    sums = torch.zeros(KEYS, dtype=torch.float64)
    for _, part in pieces(1, len(keys)):
        sums += torch.bincount(
            _places(keys[part]), None if counts is None else counts[part].double(), minlength=KEYS
        )
    if not sums.any():
        sums = torch.bincount(_places(keys), minlength=KEYS).double()
    used = sums.nonzero().flatten()
    return line_of(_all_values()[used].unsqueeze(0), sums[used].unsqueeze(0))


def _nearest(keys: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """keys [n, elements], tables float32 [n, entries] -> uint8 [n, elements], the index of the nearest entry
    (the lower of two)."""
    middles = (tables[:, 1:] + tables[:, :-1]) / 2
    if keys.shape[1] < SHORT:
        return torch.searchsorted(middles, _values(keys).float(), out_int32=True).to(torch.uint8)
    edges = torch.searchsorted(_all_values().float(), middles, right=True)
    lengths = torch.nn.functional.pad(torch.nn.functional.pad(edges, (1, 0)), (0, 1), value=KEYS).diff(dim=1)
    entries = torch.arange(tables.shape[1], dtype=torch.uint8).repeat(len(tables))
    by_key = torch.from_numpy(np.repeat(entries.numpy(), lengths.flatten().numpy()))
    starts = KEYS * torch.arange(len(keys), dtype=torch.int32).unsqueeze(1)
    nearest = torch.empty(keys.shape, dtype=torch.uint8)
    for piece in pieces(*keys.shape):
        torch.index_select(
            by_key, 0, _places(keys[piece]).add_(starts[piece[0]]).flatten(), out=nearest[piece].view(-1)
        )
    return nearest


def _places(keys: torch.Tensor) -> torch.Tensor:
    """int32, from 0."""
    return keys.int().add_(KEYS // 2)


def _int8_tables(line: Line, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (tables float32 [n, entries], float16(code * scale), ascending; scale [n, 1]). The best seen of a
    few fits to what is nearest."""
    original = tables
    is_stored, stored_scale = _grid_of_codes(original)
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for _ in range(REFITS):
        weight, total = runs(line, cuts_between(line, tables))
        means = torch.where(weight > 0, total / weight.clamp_min(1e-300), tables)
        scale = _table_scale(means, weight)
        tables = ((means / scale).round_().clamp_(-LARGEST_CODE, LARGEST_CODE) * scale).half().double()
        weight, total = runs(line, cuts_between(line, tables))
        # but for the sum of squares of the values
        error = (weight * tables.square() - 2 * total * tables).sum(1, keepdim=True)
        if best is None:
            best = error, tables, scale
        better = error < best[0]
        best = (
            torch.where(better, error, best[0]),
            torch.where(better, tables, best[1]),
            torch.where(better, scale, best[2]),
        )
    assert best is not None  # REFITS is at least 1
    return torch.where(is_stored, original, best[1]).float(), torch.where(
        is_stored, stored_scale, best[2].float()
    )


def _grid_of_codes(tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (whether a table is of int8 codes times a scale already [n, 1], that scale): such tables stay as
    they are."""
    largest = tables.abs().amax(1, keepdim=True).float()
    least = int(LARGEST_CODE / SCALES[-1])
    is_exact, scale, zero = on_grid(
        tables.float(), largest, range(LARGEST_CODE, least - 1, -1), -LARGEST_CODE, LARGEST_CODE
    )
    return is_exact & (zero == 0), scale  # a table has no zero point


def _table_scale(means: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The float16 scale [n, 1] of 97 whose codes are nearest to the means in the weighted squared error; 1
    for tables of zeros."""
    largest = means.abs().amax(1, keepdim=True)
    tried = (
        (largest / LARGEST_CODE * SCALES).half().double().clamp_(SMALLEST_SCALE, LARGEST_SCALE).unsqueeze(2)
    )
    codes = (means.unsqueeze(1) / tried).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    error = (weight.unsqueeze(1) * (codes * tried - means.unsqueeze(1)).square_()).sum(2)
    chosen = tried.squeeze(2).gather(1, error.argmin(1, keepdim=True)).half().double()
    return torch.where(largest > 0, chosen, 1.0)


def _scaled(
    weight: torch.Tensor,
    fit: Callable[[torch.Tensor, torch.Tensor | None], Palette],
    axis: int,
    mask: torch.Tensor | None,
    importance: torch.Tensor | None,
) -> Palette:
    """The best of three: channels divided by their largest magnitude (coremltools), by their root mean
    square, and left as they are.

    So it is never worse than without scales. The error of a divided weight counts as much as it will be
    multiplied by.
    """
    over = [other for other in range(weight.dim()) if other != axis]
    counts = torch.ones(()) if mask is None else mask.float()
    counts = counts if importance is None else counts * importance
    root = ((weight.square() * counts).mean(over, keepdim=True) / counts.mean().clamp_min(1e-30)).sqrt()
    largest = weight.abs().amax(over, keepdim=True)
    best, least = None, torch.inf
    for scale in (largest, root, torch.ones_like(root)):
        scale = torch.where(scale > SMALLEST_SCALE, scale, 1.0).half().float().clamp_min_(SMALLEST_SCALE)
        # the root mean square leaves out what does not count
        scale = torch.where(largest <= LARGEST_FLOAT16 * scale, scale, 1.0)
        palette = fit(
            weight / scale,
            scale.square() * (1.0 if importance is None else importance) + torch.zeros_like(weight),
        )
        palette = replace(palette, channel_scale=scale)
        noise = CompressedWeight("", tuple(weight.shape), palette).dense() - weight
        # a table's entry times a scale may overflow
        error = float((noise.square() * counts).sum()) if noise.isfinite().all() else torch.inf
        if best is None or error < least:
            best, least = palette, error
    assert best is not None  # three were tried
    return best
