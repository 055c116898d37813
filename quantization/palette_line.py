"""One-dimensional k-means: sorted, weighted values enter, the tables of least squared error leave.

In one dimension every cluster is a run of neighbouring values, so a table is a choice of cuts. The cuts start
from the density of the values and move by dynamic programming over windows around them: all cuts jointly,
first as far as the neighbouring cuts, in the end value by value. Only an optimum that no such joint move
leads to could be missed; the tests hold the result to 1 % of the exact optimum and find it equal to the
optimum but for rounding. Deterministic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

BINS = 16  # for each entry, from which the density of the values is read
REBINNINGS = 3
CAPPINGS = 10  # rounds of taking importance from bins that have too few values for it
STEPS = 8  # candidates on each side of a cut, by value and by weight
NARROW_STEPS = 8  # candidates on each side later, when a cut moves within its cell
REACH = 8  # candidates on each side of a cut in the end, when it moves by so many values:
STRIDES = (32, 8, 1)
# the first of those moves looks half as far as the neighbours, each further one as far as a step of the one
# before
NARROWING = 2
JUMPS = (2, 4, 8, 16, 32)  # cuts
ROUNDS = 12  # moves of one stage at most
TINY = 1e-300  # an empty run: 0 / TINY = 0


@dataclass(frozen=True)
class Line:
    """values float64 ascending [n, width], how much each weighs and weight x value as sums of all before:
    float64 [n, width + 1]."""

    values: torch.Tensor
    weight: torch.Tensor
    total: torch.Tensor


def line_of(values: torch.Tensor, weights: torch.Tensor) -> Line:
    """values ascending, weights not negative, both float64 [n, width]."""
    return Line(
        values, *(torch.nn.functional.pad(part.cumsum(1), (1, 0)) for part in (weights, weights * values))
    )


def fit_tables(line: Line, entries: int) -> torch.Tensor:
    """-> tables float64 [n, entries], ascending, of least squared error; the distinct values themselves where
    they are no more than that."""
    cuts = _settle(line, _start(line, entries), _anywhere)
    share = 1.0 / NARROWING
    while float(cuts.diff(dim=1).max()) * share > REACH * STRIDES[0] / 2:
        cuts = _move(line, _around(line, cuts, share, NARROW_STEPS))
        share /= NARROW_STEPS
    for stride in STRIDES:
        cuts = _settle(line, cuts, partial(_by_values, stride=stride))
    return _few(line, entries, _centres(line, cuts))


def cuts_between(line: Line, tables: torch.Tensor) -> torch.Tensor:
    """tables ascending [n, entries] -> [n, entries + 1]: where the values nearest to each entry start and
    end."""
    inner = torch.searchsorted(line.values, (tables[:, 1:] + tables[:, :-1]) / 2, right=True)
    return _with_ends(line, inner)


def runs(line: Line, cuts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (weight, weight x value) of each run between neighbouring cuts, [n, entries] each."""
    return line.weight.gather(1, cuts).diff(dim=1), line.total.gather(1, cuts).diff(dim=1)


def _with_ends(line: Line, inner: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=line.values.shape[1])


def _start(line: Line, entries: int) -> torch.Tensor:
    """Cuts spaced by the cube root of the density (Panter and Dite 1951: optimal for many levels).

    Bins start with equal weight and are cut anew until each is as important to a table; tails of few, far
    values need that.
    """
    bins = BINS * max(entries, 16)
    edges = torch.searchsorted(
        line.weight, torch.linspace(0, 1, bins + 1, dtype=torch.float64) * line.weight[:, -1:]
    )
    for _ in range(REBINNINGS):
        edges = _equal_importance(line, edges, bins, entries)
    return _equal_importance(line, edges, entries, entries)


def _equal_importance(line: Line, edges: torch.Tensor, bins: int, entries: int) -> torch.Tensor:
    """Edges of some bins -> edges of `bins` bins of equal importance: one of weight c and width d has c^(1/3)
    d^(2/3) of it.

    But never more than lets each of its values have an entry of its own.
    """
    values = line.values.gather(1, edges.clamp_max(line.values.shape[1] - 1)).diff(dim=1)
    importance = (line.weight.gather(1, edges).diff(dim=1) * values.square()).pow(1 / 3)
    for _ in range(CAPPINGS):
        importance = torch.minimum(importance, edges.diff(dim=1) * importance.sum(1, keepdim=True) / entries)
    mass = torch.nn.functional.pad(importance.cumsum(1), (1, 0))
    targets = torch.arange(1, bins) * (mass[:, -1:] / bins)
    upper = torch.searchsorted(mass, targets).clamp_(1, edges.shape[1] - 1)
    low, high, first = mass.gather(1, upper - 1), mass.gather(1, upper), edges.gather(1, upper - 1)
    inside = (targets - low) / (high - low).clamp_min(TINY)
    return _with_ends(line, first + (inside * (edges.gather(1, upper) - first)).round().long())


def _anywhere(line: Line, cuts: torch.Tensor) -> torch.Tensor:
    """Candidates [n, entries + 1, c] for each cut: on the way to its neighbours, in equal steps of value and
    of weight, and farther cuts.

    A cell of one far value and a crowd has steps of value that all miss the crowd, and steps of weight that
    all miss the gap. The places of other cuts let a row of entries move up where others are wanted elsewhere.
    """
    by_weight = torch.searchsorted(line.weight, _between(line.weight.gather(1, cuts), 1.0, STEPS).flatten(1))
    jumps = torch.tensor([*(-jump for jump in JUMPS), *JUMPS])
    places = (torch.arange(cuts.shape[1]).unsqueeze(1) + jumps).clamp_(0, cuts.shape[1] - 1)
    return _pinned(
        torch.cat(
            [_around(line, cuts, 1.0, STEPS), by_weight.reshape(*cuts.shape, -1), cuts[:, places]], dim=2
        ),
        line,
    )


def _around(line: Line, cuts: torch.Tensor, share: float, steps: int) -> torch.Tensor:
    """Candidates [n, entries + 1, c] for each cut: `share` of the way to its neighbours, in equal steps of
    value."""
    borders = _between(line.values.gather(1, cuts.clamp_max(line.values.shape[1] - 1)), share, steps)
    places = torch.searchsorted(line.values, borders.flatten(1)).reshape(borders.shape)
    return _pinned(torch.cat([cuts.unsqueeze(2), places], dim=2), line)


def _between(at: torch.Tensor, share: float, steps: int) -> torch.Tensor:
    """at [n, cuts] -> [n, cuts, 2 * steps]: equal steps toward each neighbour."""
    gap = torch.nn.functional.pad(at.diff(dim=1), (1, 1)).unsqueeze(2)
    parts = torch.arange(1, steps + 1, dtype=torch.float64) * (share / steps)
    return torch.cat([at.unsqueeze(2) - gap[:, :-1] * parts, at.unsqueeze(2) + gap[:, 1:] * parts], dim=2)


def _pinned(candidates: torch.Tensor, line: Line) -> torch.Tensor:
    """The first and the last cut are the ends of the line."""
    candidates[:, 0], candidates[:, -1] = 0, line.values.shape[1]
    return candidates


def _by_values(line: Line, cuts: torch.Tensor, stride: int) -> torch.Tensor:
    """Candidates [n, entries + 1, 17] for each cut: up to eight times `stride` values to each side."""
    offsets = torch.arange(-REACH, REACH + 1) * stride
    return _pinned((cuts.unsqueeze(2) + offsets).clamp_(0, line.values.shape[1]), line)


def _settle(
    line: Line, cuts: torch.Tensor, candidates: Callable[[Line, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Move the cuts until none moves; rows that are settled are left out."""
    left, rest = torch.arange(len(cuts)), line
    for _ in range(ROUNDS):
        before = cuts[left]
        moved = _move(rest, candidates(rest, before))
        cuts = cuts.index_copy(0, left, moved)
        moves = (moved != before).any(1)
        if not moves.any():
            break
        if not moves.all():
            left, rest = left[moves], Line(rest.values[moves], rest.weight[moves], rest.total[moves])
    return cuts


def _move(line: Line, candidates: torch.Tensor) -> torch.Tensor:
    """The best choice of one candidate for each cut, exactly: candidates [n, entries + 1, c] -> cuts [n,
    entries + 1], ascending.

    The squared error is the sum of w x^2, a constant, minus the sum over runs of (sum w x)^2 / sum w, which
    is what is maximised.
    """
    weight, total = (
        prefix.gather(1, candidates.flatten(1)).reshape(candidates.shape)
        for prefix in (line.weight, line.total)
    )
    gains = (total[:, 1:, None, :] - total[:, :-1, :, None]).square_()
    gains.div_((weight[:, 1:, None, :] - weight[:, :-1, :, None]).add_(TINY))  # [n, entries, start, end]
    torch.threshold_(gains, -TINY, -torch.inf)  # a run cannot end before it starts
    best, choices = torch.zeros_like(weight[:, 0]), []
    for gain in gains.unbind(1):
        best, choice = gain.add_(best.unsqueeze(2)).max(1)
        choices.append(choice)
    chosen = [best.argmax(1, keepdim=True)]
    for choice in reversed(choices):
        chosen.append(choice.gather(1, chosen[-1]))
    picked = torch.stack(chosen[::-1], dim=1)  # [n, entries + 1, 1]
    return candidates.gather(2, picked).squeeze(2).cummax(1).values


def _centres(line: Line, cuts: torch.Tensor) -> torch.Tensor:
    """The mean of each run, ascending; an empty run repeats its neighbour."""
    weight, total = runs(line, cuts)
    means = torch.where(weight > 0, total / weight.clamp_min(TINY), -torch.inf).cummax(1).values
    # runs that are empty at the start take the first mean
    first = means.isfinite().int().argmax(1, keepdim=True)
    return torch.where(means.isfinite(), means, means.gather(1, first).nan_to_num(neginf=0.0))


def _few(line: Line, entries: int, tables: torch.Tensor) -> torch.Tensor:
    """Where no more than `entries` distinct values weigh anything, exactly them, the last one repeated."""
    used = line.weight.diff(dim=1) > 0
    new = used[:, 1:] & (line.values.diff(dim=1) > 0)
    for row in (new.sum(1) <= entries).nonzero().flatten().tolist():
        distinct = line.values[row][used[row]].unique()
        if 0 < len(distinct) <= entries:
            tables[row] = torch.nn.functional.pad(
                distinct, (0, entries - len(distinct)), value=float(distinct[-1])
            )
    return tables
