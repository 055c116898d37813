"""The cheapest way through a program: a cost for every operation and unit comes in, a unit for every
operation leaves.

The rule is Core ML's own, as its planner was seen to follow it on an M4 (devices/planner.json): a shortest
path over units, where an operation costs what `costs.py` says, changing the unit costs 0.125 ms, the first
use of the Neural Engine costs 0.125 ms (once for a program: a program with two segments on it was seen to pay
0.5 ms in all), and a last result left there 0.125 ms.

On a graph with branches the path runs over one order of the operations, and a change of unit between
neighbours of that order is one crossing. It is the file order, except that operations that the Neural Engine
can run and that are ready go before ones that it cannot (and the other way round), so that a side branch of
integers is one excursion and not many. Every assignment of units over that order is a path, so the cheapest
is exact.
"""

import functools
import heapq

from ..graph import captured_names, references
from .devices import planner
from .operations import Operation

UNITS = ("ane", "gpu", "cpu")
TIE_MS = 1e-9
State = tuple[str, frozenset[str]]  # the unit that runs now, the units launched so far
START: State = ("", frozenset())


def schedule(steps: list[Operation], capable: list[bool]) -> list[int]:
    """Indices of the operations in an order that respects data flow: as in the file, but as long as
    operations of one kind (capable or not) are ready, they go first."""
    producer = {value.name: index for index, step in enumerate(steps) for value in step.node.outputs}
    waits: list[int] = []
    readers: list[list[int]] = [[] for _ in steps]
    for index, step in enumerate(steps):
        names = set(references(step.node.inputs)) | {
            name for block in step.node.blocks for name in captured_names(block)
        }
        sources = {producer[name] for name in names if producer.get(name, index) < index}
        waits.append(len(sources))
        for source in sources:
            readers[source].append(index)
    return _drain(waits, readers, capable)


def _drain(waits: list[int], readers: list[list[int]], capable: list[bool]) -> list[int]:
    ready: dict[bool, list[int]] = {True: [], False: []}
    for index, count in enumerate(waits):
        if not count:
            heapq.heappush(ready[capable[index]], index)
    kind, order = (capable[0] if capable else True), []
    while ready[True] or ready[False]:
        kind = kind if ready[kind] else not kind
        index = heapq.heappop(ready[kind])
        order.append(index)
        for reader in readers[index]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready[capable[reader]], reader)
    return order


def cheapest_path(costs: list[dict[str, float]]) -> list[str]:
    """For each operation the unit of the cheapest assignment; costs [{"ane": 0.1, "cpu": 0.2}, ...], a unit
    that is absent cannot run it.

    Dynamic programming over states (unit, units launched so far). Of equal paths one that ends on the Neural
    Engine wins, then one that changes the unit early.
    """
    rules = planner()
    best: dict[State, float] = {START: 0.0}
    trail: list[dict[State, State]] = []
    for cost in costs:
        after: dict[State, float] = {}
        came: dict[State, State] = {}
        for state, spent in best.items():
            for unit, reached, entry in _moves(state):
                if unit in cost:
                    total = spent + cost[unit] + entry
                    known = after.get(reached)
                    if (
                        known is None
                        or total < known - TIE_MS
                        or (state[0] == unit and total < known + TIE_MS)
                    ):
                        after[reached], came[reached] = total, state
        best = after
        trail.append(came)
    return _walk_back(
        {state: spent + rules["output_ms"].get(state[0], 0.0) for state, spent in best.items()}, trail
    )


@functools.cache
def _moves(state: State) -> tuple[tuple[str, State, float], ...]:
    """(unit, state reached, switch and launch) for every unit that may come next."""
    return tuple((unit, (unit, state[1] | {unit}), _entry_ms(state, unit)) for unit in UNITS)


def _entry_ms(state: State, unit: str) -> float:
    rules, (before, launched) = planner(), state
    switch = rules["switch_ms"] if before and before != unit else 0.0
    return switch + (0.0 if unit in launched else rules["launch_ms"][unit])


def _walk_back(ends: dict[State, float], trail: list[dict[State, State]]) -> list[str]:
    cheapest = min(ends.values())
    tied = [state for state, spent in ends.items() if spent <= cheapest + TIE_MS]
    state = min(tied, key=lambda state: UNITS.index(state[0]) if state[0] else 0)
    units = []
    for came in reversed(trail):
        units.append(state[0])
        state = came[state]
    return units[::-1]


def path_cost(costs: list[dict[str, float]], units: list[str]) -> float:
    """What an assignment costs in all: operations, switches, first launches, output."""
    rules, state, total = planner(), START, 0.0
    for cost, unit in zip(costs, units):
        total += cost[unit] + _entry_ms(state, unit)
        state = (unit, state[1] | {unit})
    return total + (rules["output_ms"][units[-1]] if units else 0.0)
