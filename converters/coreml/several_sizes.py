"""MIL programs of one captured model at each of its sizes in; the one that serves all of them, and says so of
its inputs, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...models.errors import UserError
from ...models.graphs import describe
from .pass_guards import pads_kept, remove_empty_pads
from .program import MilProgram
from .shape_arithmetic import is_read_off
from .tools import import_coremltools
from .unify import OtherStructure, compare, unified

SEVERAL_LISTED = 9  # specification version of iOS18: before, one input only may list sizes


def at_each_size(compressed: Any) -> list[Any]:
    """The same compressed model, captured at each of its sizes; the usual one first."""
    return [compressed, *(replace(compressed, captured=other) for other in compressed.captured.at)]


def serving_all(make: Callable[[Sequence[int]], list[tuple[Any, MilProgram]]], captured: Any) -> Any:
    """One program for all sizes, with the lowered one that it came of. make: both, of some sizes by number.

    Sizes that are listed need not all be converted where what differs is read off shapes: the saved bytes are
    run at each. Raises UserError where the sizes are too unlike.
    """
    shapes = [tuple(spec.shape for spec in one.inputs) for one in (captured, *captured.at)]
    few = _telling(shapes) if captured.sizes.listed else list(range(len(shapes)))
    with pads_kept():
        made = make(few)
    for one in made:
        _refuse_loops(*one)
    if len(few) < len(shapes) and not _read_off([mil.program for _, mil in made]):
        few = list(range(len(shapes)))
        with pads_kept():
            made = make(few)
    index = _unite(
        [mil for _, mil in made], [lowered.program for lowered, _ in made], few, shapes, captured.sizes
    )
    return made[index]


def _refuse_loops(lowered: Any, mil: MilProgram) -> None:
    for operation in mil.program.functions["main"].operations:
        if operation.blocks:
            raise UserError(
                f"{_described(lowered.program)(operation)} is a loop over steps in a package, which has one"
                " number of them.",
                "Convert it once for each size, without the choice in --input; an LSTM or RNN needs no loop.",
            )


def _telling(shapes: Sequence[Any]) -> list[int]:
    """The usual size, and as many others that each dimension has its largest, and two sizes."""
    chosen = [0]
    by_volume = sorted(range(1, len(shapes)), key=lambda index: -sum(map(math.prod, shapes[index])))
    for index in by_volume:
        few = [shapes[number] for number in chosen]
        if not (_varies_all(few, shapes) and _reaches_all(few, shapes)):
            chosen.append(index)
    return chosen


def _read_off(programs: Sequence[Any]) -> bool:
    """Whether the programs are alike, and all that differs is a size of what an operation reads."""
    try:
        likeness = compare(programs)
    except OtherStructure:
        return False
    return all(is_read_off(difference, likeness.numbers) for difference in likeness.differences)


def _unite(
    mils: Sequence[MilProgram],
    programs: Sequence[Any],
    numbers: Sequence[int],
    shapes: Sequence[Any],
    sizes: Any,
) -> int:
    """Change one of the programs to serve all sizes; -> which. numbers: of their sizes.

    Where a size has a structure of its own (a single row needs no softmax over rows, a slice to the last
    element is none) the program is made of the others and has to prove itself at this one when it is run.
    """  # fmt: skip
    chosen = _alike([mil.program for mil in mils])
    there = [shapes[numbers[index]] for index in chosen]
    if not _varies_all(there, shapes):
        _tell_apart(mils, programs)
    base = chosen[0]
    every = len(chosen) == len(shapes) and bool(sizes.listed)
    described, largest = _described(programs[base]), _reaches_all(there, shapes)
    unified([mils[index].program for index in chosen], described, every=every, largest=largest)
    remove_empty_pads(mils[base].program)
    _declare_inputs(mils[base], sizes)
    return base


def range_warnings(captured: Any) -> Iterator[str]:
    """Of a model whose inputs have ranges, for each input that is not as another."""
    sizes = captured.sizes
    for index, spec in enumerate(captured.inputs if sizes is not None and sizes.spans else ()):
        bounds = sizes.bounds(index)
        if not any(span.places[0][0] == index for span in sizes.spans):
            continue
        ranged = "x".join(str(low) if low == high else f"{low}..{high}" for low, high in bounds)
        columns = dict.fromkeys((spec.shape, *zip(*bounds)))
        listed = "x".join(
            str(row[0]) if len(set(row)) == 1 else ",".join(map(str, row)) for row in zip(*columns)
        )
        dtype = "" if spec.dtype == "float32" else f":{spec.dtype}"
        yield (
            f"{spec.name} has a range ({ranged}): the Neural Engine runs the model at its usual size only,"
            " the GPU or the CPU at all others.\nList the sizes that the app needs, as in --input"
            f" {spec.name}:{listed}{dtype}, and each can run on the Neural Engine."
        )


def _alike(programs: Sequence[Any]) -> list[int]:
    """The numbers of the most programs that do the same operations; of equally many, those with the first."""
    groups: list[list[int]] = []
    for index, program in enumerate(programs):
        for group in groups:
            if _same_structure(programs[group[0]], program):
                group.append(index)
                break
        else:
            groups.append([index])
    return max(groups, key=len)


def _same_structure(one: Any, other: Any) -> bool:
    try:
        compare([one, other])
    except OtherStructure:
        return False
    return True


def _dimensions(shapes: Sequence[Any]) -> list[tuple[int, ...]]:
    """Of each dimension of each input, its sizes."""
    return [tuple(column) for inputs in zip(*shapes) for column in zip(*inputs)]


def _varies_all(chosen: Sequence[Any], shapes: Sequence[Any]) -> bool:
    return all(
        len(set(mine)) > 1 or len(set(every)) == 1
        for mine, every in zip(_dimensions(chosen), _dimensions(shapes))
    )


def _reaches_all(chosen: Sequence[Any], shapes: Sequence[Any]) -> bool:
    return all(max(mine) == max(every) for mine, every in zip(_dimensions(chosen), _dimensions(shapes)))


def _tell_apart(mils: Sequence[MilProgram], programs: Sequence[Any]) -> None:
    """Raises UserError with the first operation that a size has for itself."""
    for other in mils[1:]:
        try:
            compare([mils[0].program, other.program])
        except OtherStructure as error:
            where = "its end" if error.operation is None else _described(programs[0])(error.operation)
            raise UserError(
                f"The model does other operations at other sizes, first at {where}, so one graph cannot serve"
                " them.",
                "Convert it once for each size, without the choice in --input; or leave out the size that is"
                " unlike the others.",
            ) from error


def _described(program: Any) -> Callable[[Any], str]:
    """What says where in the source an operation of the MIL program comes from."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}

    def told(operation: Any) -> str:
        names = [operation.name, *(value.name for value in operation.outputs)]
        fitting = [node for name, node in nodes.items() if any(one.startswith(name) for one in names)]
        node = max(fitting, key=lambda node: len(node.name), default=None)
        return f"{operation.op_type} {operation.name}" if node is None else describe(node)

    return told


def _declare_inputs(mil: MilProgram, sizes: Any) -> None:
    """What an app may choose from, in the types of the inputs that coremltools describes."""
    ct = import_coremltools()
    main = mil.program.functions["main"]
    known = {one.name: one for one in main.input_types or ()}
    flexible = []
    for index, (name, value) in enumerate(main.inputs.items()):
        if all(isinstance(size, int) for size in value.shape):
            continue
        kind = known.setdefault(name, ct.TensorType(name=name, shape=sizes.usual[index]))
        kind.shape = _shape(ct, sizes, index)
        flexible.append(name)
    if sizes.listed and len(flexible) > 1 and mil.specification < SEVERAL_LISTED:
        raise UserError(
            f"Inputs {' and '.join(flexible)} list sizes; before iOS18 one input of a Core ML model may.",
            "Use --deployment-target iOS18, or ranges (NAME:1x1..512@128:int32).",
        )
    main.input_types = [known[name] for name in main.inputs if name in known]


def _shape(ct: Any, sizes: Any, index: int) -> Any:
    if sizes.listed:
        return ct.EnumeratedShapes([shapes[index] for shapes in sizes.listed], default=sizes.usual[index])
    return ct.Shape(
        [
            low if low == high else ct.RangeDim(low, high, default=usual)
            for (low, high), usual in zip(sizes.bounds(index), sizes.usual[index])
        ]
    )
