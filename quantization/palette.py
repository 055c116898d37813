"""Lookup tables: a weight enters, a Palette with sorted, float16-exact tables of least squared error leaves.

One-dimensional k-means over a histogram: a float16 weight has at most 65,536 distinct values, however many elements it has. Tables
start from the optimum over bins (dynamic programming) and are refined by Lloyd's iteration on the full histogram. Deterministic.
"""
import torch

from .weight import Palette, from_rows, to_rows

KEYS = 65536  # float16 bit patterns
GROUPS_AT_ONCE = 16  # bounds the histograms held at once to 16 x 65,536 entries
WIDEST_RUN = 8  # of the dynamic programme: no entry takes more than 8 times its share of the bins, which are spaced for equal shares
ITERATIONS = 100


def palettize(weight: torch.Tensor, bits: int, groups: tuple[int, ...], mask: torch.Tensor | None = None) -> Palette:
    """weight float32 [64, 128] within float16's range, groups (4, 1) -> indices [64, 128], lut [4, 1, 2^bits, 1].

    With a mask (bool [64, 128]) only the survivors are fitted. Where a group has no more distinct values than the table has entries,
    the table holds exactly them, the last one repeated.
    """
    rows = to_rows(weight, groups)
    kept = None if mask is None else to_rows(mask, groups)
    indices, tables = torch.empty(rows.shape, dtype=torch.uint8), []
    for start in range(0, len(rows), GROUPS_AT_ONCE):
        part = slice(start, start + GROUPS_AT_ONCE)
        keys = _keys(rows[part])
        table = _fit(*_histogram(keys, None if kept is None else kept[part]), 2**bits).half().float()
        indices[part] = _nearest(keys, rows[part], table)
        tables.append(table)
    lut = torch.cat(tables).reshape(*groups, 2**bits, 1)
    return Palette(bits, from_rows(indices, weight.shape, groups), lut)


def _keys(rows: torch.Tensor) -> torch.Tensor:
    """int32 [n, elements] in 0..65535 (plus 65536 x row), in the order of the float16 values; -0 counts as 0."""
    pattern = (rows.half() + 0.0).view(torch.int16)
    ordered = pattern ^ ((pattern >> 15) & 0x7FFF)
    return ordered.int() + (torch.arange(len(rows), dtype=torch.int32).unsqueeze(1) * KEYS + KEYS // 2)


def _values_of_keys() -> torch.Tensor:
    """float64 [65536], ascending; the patterns of infinities and NaN, which no weight here has, are set to the largest finite value."""
    ordered = torch.arange(-KEYS // 2, KEYS // 2, dtype=torch.int32).to(torch.int16)
    values = (ordered ^ ((ordered >> 15) & 0x7FFF)).view(torch.float16).double()
    return values.nan_to_num(nan=torch.inf).clamp(-65504, 65504)


def _histogram(keys: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """keys [n, elements] -> (distinct values ascending [n, width], their counts [n, width]), float64; rows with fewer are padded with
    their last value and count 0."""
    rows = len(keys)
    chosen = keys.flatten() if mask is None else keys[mask]
    counts = torch.bincount(chosen, minlength=rows * KEYS).reshape(rows, KEYS)
    row, key = counts.nonzero(as_tuple=True)
    distinct = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row)) - (distinct.cumsum(0) - distinct)[row]
    width = max(1, int(distinct.max()))
    packed = torch.zeros(2, rows, width, dtype=torch.float64)
    packed[0, row, place] = _values_of_keys()[key]
    packed[1, row, place] = counts[row, key].double()
    last = packed[0].gather(1, (distinct - 1).clamp_min(0).unsqueeze(1))
    return torch.where(torch.arange(width) < distinct.unsqueeze(1), packed[0], last), packed[1]


def _fit(values: torch.Tensor, counts: torch.Tensor, entries: int) -> torch.Tensor:
    """values ascending, counts [n, width] -> tables [n, entries], float64, ascending."""
    sums = torch.stack([counts, counts * values, counts * values.square()]).cumsum(2)
    sums = torch.nn.functional.pad(sums, (1, 0))  # sums[:, :, i]: of the first i values
    bins = max(1024, 8 * entries) if len(values) == 1 else max(128, 2 * entries)  # many tables: coarser, for time
    edges = _plan(sums, _dense_edges(values, counts, bins), entries)
    tables = _refine(values, sums, _centres(sums, edges, values[:, :1].expand(-1, entries)))
    few = (counts > 0).sum(1, keepdim=True) <= entries
    columns = torch.arange(entries).clamp_max(values.shape[1] - 1)
    return torch.where(few, values[:, columns], tables)


def _dense_edges(values: torch.Tensor, counts: torch.Tensor, bins: int) -> torch.Tensor:
    """Edges [n, bins + 1] into the values, spaced by the cube root of the density (Panter and Dite 1951: optimal for many levels).

    density^(1/3) * spacing = counts^(1/3) * spacing^(2/3).
    """
    spacing = torch.ones_like(values)
    if values.shape[1] > 2:
        spacing = torch.nn.functional.pad(values[:, 2:] - values[:, :-2], (1, 1), mode="replicate")
    mass = (counts.pow(1 / 3) * spacing.pow(2 / 3)).cumsum(1)
    wanted = torch.arange(1, bins) * (mass[:, -1:] / bins)
    inner = torch.searchsorted(mass, wanted)
    return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=values.shape[1])


def _plan(sums: torch.Tensor, edges: torch.Tensor, entries: int) -> torch.Tensor:
    """The best of all partitions of the bins into `entries` runs of at most `width` bins, exactly, within-bin spread included.

    sums [3, n, values + 1] (count, sum, sum of squares), edges [n, bins + 1] -> [n, entries + 1]. Time n * entries * bins * width.
    """
    bins = edges.shape[1] - 1
    width = min(bins, WIDEST_RUN * bins // entries)
    at = [prefix.gather(1, edges) for prefix in sums]
    cost = _spread(*(prefix[:, None, 1:] - _starts(prefix, width, 0.0) for prefix in at))  # [n, start - end + width, end - 1]
    best = torch.full(edges.shape, torch.inf, dtype=torch.float64)
    best[:, 0] = 0.0
    choices = []
    for _ in range(entries):
        lowest, choice = (cost + _starts(best, width, torch.inf)).min(1)
        best = torch.nn.functional.pad(lowest, (1, 0), value=torch.inf)
        choices.append(choice)
    cuts = [torch.full((len(edges), 1), bins)]
    for choice in reversed(choices):
        cuts.append(cuts[-1] - width + choice.gather(1, cuts[-1] - 1))
    return edges.gather(1, torch.cat(cuts[::-1], dim=1))


def _starts(prefix: torch.Tensor, width: int, outside: float) -> torch.Tensor:
    """prefix [n, bins + 1] -> view [n, width, bins]: the entries at the `width` possible starts before each of the ends 1..bins."""
    bins = prefix.shape[1] - 1
    return torch.nn.functional.pad(prefix[:, :-1], (width - 1, 0), value=outside).unfold(1, bins, 1)


def _spread(count: torch.Tensor, total: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """Sum of squared distances to the mean, from count, sum and sum of squares; 0 where nothing is counted."""
    return (square - total.square() / count.clamp_min(1)).clamp_min_(0)


def _centres(sums: torch.Tensor, edges: torch.Tensor, fallback: torch.Tensor) -> torch.Tensor:
    """The mean between neighbouring edges [n, entries]; an empty run keeps its fallback. Ascending."""
    count, total, _ = (prefix.gather(1, edges).diff(dim=1) for prefix in sums)
    return torch.where(count > 0, total / count.clamp_min(1), fallback).cummax(1).values


def _refine(values: torch.Tensor, sums: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Lloyd's iteration: each entry moves to the mean of the values nearest to it, until nothing moves."""
    for _ in range(ITERATIONS):
        inner = torch.searchsorted(values, _midpoints(tables), right=True)
        edges = torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=values.shape[1])
        moved = _centres(sums, edges, tables)
        if torch.equal(moved, tables):
            break
        tables = moved
    return tables


def _midpoints(tables: torch.Tensor) -> torch.Tensor:
    return (tables[:, 1:] + tables[:, :-1]) / 2


def _nearest(keys: torch.Tensor, rows: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """keys and rows [n, elements], tables [n, entries] -> uint8 [n, elements], the index of the nearest entry (the lower of two)."""
    if rows.shape[1] < KEYS:
        return torch.searchsorted(_midpoints(tables), rows.half().float().contiguous(), out_int32=True).to(torch.uint8)
    values = _values_of_keys().float().expand(len(tables), -1).contiguous()
    by_key = torch.searchsorted(_midpoints(tables), values, out_int32=True).to(torch.uint8)
    return by_key.flatten().index_select(0, keys.flatten()).reshape(keys.shape)
