"""Shapes and permutations of any rank in five axes: neighbouring axes that are treated alike are merged."""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

LARGEST_RANK = 5  # of any tensor in an ML Program


class Run(NamedTuple):
    """Neighbouring axes as one. size: their elements; mark: what was said of each."""

    size: int
    mark: Hashable


def runs_of(shape: Sequence[int], marks: Sequence[Hashable]) -> list[Run]:
    """Neighbouring axes of one mark together; axes of size 1 belong to anything."""
    runs: list[Run] = []
    for size, mark in zip(shape, marks):
        if size == 1:
            continue
        if runs and runs[-1].mark == mark:
            runs[-1] = Run(runs[-1].size * size, mark)
        else:
            runs.append(Run(size, mark))
    return runs


def compact(shape: Sequence[int]) -> list[int]:
    """A shape of at most four axes with the same elements in the same order; the last three stay."""
    long = [size for size in shape if size != 1]
    return long if len(long) <= 4 else [math.prod(long[:-3]), *long[-3:]]


def around(shape: Sequence[int], axis: int) -> list[int]:
    """[2, 3, 4, 5] around axis 1 -> [2, 3, 20]"""
    axis %= len(shape)
    return [math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])]


def spread(tensor: torch.Tensor, shape: Sequence[int], out: Sequence[int]) -> torch.Tensor:
    """The tensor, which stands for `shape`, expanded to `out` (laid out as `compact(out)`)."""
    shape = [1] * (len(out) - len(shape)) + list(shape)
    marks = [have != want for have, want in zip(shape, out)]
    runs = runs_of(out, marks)
    while len(runs) > LARGEST_RANK:  # one run at a time
        place = next(place for place, run in enumerate(runs) if run.mark)
        sizes = [1 if run.mark else run.size for run in runs]
        before, after = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
        tensor = tensor.reshape(before, 1, after).expand(before, runs[place].size, after)
        runs[place] = Run(runs[place].size, False)
        runs = runs_of([run.size for run in runs], [run.mark for run in runs])
    tensor = tensor.reshape([1 if run.mark else run.size for run in runs])
    return tensor.expand([run.size for run in runs]).reshape(compact(out))


class Step(NamedTuple):
    """A permutation of at most five axes: of a tensor reshaped to `sizes`."""

    sizes: list[int]
    order: list[int]


def permute_in_steps(tensor: torch.Tensor, shape: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """The tensor, which stands for `shape`, with its axes in the order `dims`, its rank left open."""
    for step in steps_of(shape, dims):
        tensor = tensor.reshape(step.sizes).permute(step.order)
    return tensor


def steps_of(shape: Sequence[int], dims: Sequence[int]) -> list[Step]:
    """Permutations of at most five axes each that together are one of any rank: every step brings as many
    axes beside those that they end beside as it can."""
    sizes = [size for size in shape if size != 1]
    long = [axis for axis, size in enumerate(shape) if size != 1]
    goal = [long.index(axis % len(shape)) for axis in dims if axis % len(shape) in long]
    place = {axis: position for position, axis in enumerate(goal)}
    order, steps = list(range(len(sizes))), []
    while order != goal:
        groups = [[order[0]]]
        for axis in order[1:]:
            if place[axis] == place[groups[-1][-1]] + 1:
                groups[-1].append(axis)
            else:
                groups.append([axis])
        blocks, turn = _best_turn(groups, place)
        steps.append(Step([math.prod(sizes[axis] for axis in block) for block in blocks], list(turn)))
        order = [axis for block in turn for axis in blocks[block]]
    return steps


def _best_turn(groups: list[list[int]], place: dict[int, int]) -> tuple[list[list[int]], tuple[int, ...]]:
    """groups: axes that stay together -> (at most five blocks of them, the order of blocks that leaves the
    fewest breaks)"""

    def breaks(order: list[int]) -> int:
        return sum(place[after] != place[before] + 1 for before, after in itertools.pairwise(order))

    best: tuple[int, list[list[int]], tuple[int, ...]] | None = None
    count = min(len(groups), LARGEST_RANK)
    for cuts in itertools.combinations(range(1, len(groups)), count - 1):
        edges = [0, *cuts, len(groups)]
        blocks = [sum(groups[start:end], []) for start, end in itertools.pairwise(edges)]
        for turn in itertools.permutations(range(count)):
            order = [axis for block in turn for axis in blocks[block]]
            left = breaks(order) + (place[order[0]] != 0)
            if best is None or left < best[0]:
                best = (left, blocks, turn)
    assert best is not None
    return best[1], best[2]
