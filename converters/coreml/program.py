"""A lowered program enters; a MIL program with a place for each compressed weight leaves, which is filled
with weights and specified for a package.

coremltools' passes take most of a conversion and look at compressed weights only from outside. So they run
once, with places of the weights' shapes, and one program serves every recipe that compresses the same
weights.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...models.errors import UnsupportedOperators
from ...models.graphs import describe
from ...quantization.weight import CompressedWeight
from .frontend_ops import sound_translations
from .pass_guards import sound_passes
from .passes import BrokenPass, lean_passes, pass_pipeline
from .weights import MOST_PLACES, emit, emit_place, mark_compressed, place_index, weights_built_by

RECORD_BYTES = 64  # on multiples of which the header, each record and its data begin
OTHER_OPERATORS = "Replace these operators in the model, or convert a part of the model without them."


@dataclass
class MilProgram:
    """`program`: coremltools' own, after all passes; `places`: name of a weight -> the Var that stands for
    it, or of what it was filled with."""

    program: Any
    places: dict[str, Any]
    specification: int


def with_places(
    program: Any, weights: dict[str, CompressedWeight], outputs: list, target: Any, precision: Any
) -> MilProgram | None:
    """The MIL program of a lowered one. Equal weights (see `first_of_each`) share a place, named by the first
    of them.

    precision: coremltools' own. None where a pass has taken a place away: what came of it would depend on
    the weights.
    """
    first = first_of_each(weights)
    order = {name: index for index, name in enumerate(dict.fromkeys(first.values()))}
    if len(order) > MOST_PLACES:
        return None
    made: set[str] = set()
    zeros: dict[tuple, Any] = {}

    def build(name: str, called: str) -> Any:
        made.add(first[name])
        return emit_place(weights[name].shape, order[first[name]], called, zeros)

    mil = _converted(program, weights, build, outputs, target, precision)
    places = _find_places(mil, list(order))
    return MilProgram(mil, places, target.value) if made == places.keys() else None


def with_weights(
    program: Any, weights: dict[str, CompressedWeight], outputs: list, target: Any, precision: Any
) -> MilProgram:
    """The MIL program with the weights in it from the beginning, and no places."""
    return MilProgram(
        _converted(
            program, weights, lambda name, called: emit(weights[name], called), outputs, target, precision
        ),
        {},
        target.value,
    )


def fill(mil: MilProgram, weights: dict[str, CompressedWeight]) -> None:
    """Put the weights into their places, instead of what was there."""
    _replace(mil, lambda name, place, dtype: emit(weights[name], place.name, dtype))


def empty(mil: MilProgram) -> None:
    """Take the weights out again, which would stay in memory until others come."""
    zeros: dict[tuple, Any] = {}
    _replace(mil, lambda name, place, dtype: emit_place(place.shape, 0, place.name, zeros, dtype))


def _replace(mil: MilProgram, build: Callable[[str, Any, type], Any]) -> None:
    """Every place by what `build` makes there of (its weight's name, its Var, its type)."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.scope import ScopeInfo

    main = mil.program.functions["main"]
    with main:
        earlier = []
        for name, place in mil.places.items():
            # where in the source it comes from
            scopes = [ScopeInfo(source, data) for source, data in place.op.scopes.items()]
            with mb.set_before_op(place.op), mb.scope(*scopes):
                weight = build(name, place, types.nptype_from_builtin(place.dtype))
            main.replace_uses_of_var_after_op(
                place.op, place, weight, no_check_var_types=True, force_replace=True
            )
            earlier.append(place.op)
            mil.places[name] = weight
        _remove(main, earlier)


def specify(mil: MilProgram, weights_folder: Path) -> Any:
    """Write the program's weights into an empty folder. -> the specification that refers to them"""
    from coremltools.converters.mil.backend.mil.load import load

    specification = load(mil.program, str(weights_folder), specification_version=mil.specification)
    if (blob := weights_folder / "weight.bin").exists():
        count_records(blob)
    return specification


def count_records(blob: Path) -> None:
    """Write into a weight file's header how many records follow (uint32; the format: `validation.mil.blob`).

    coremltools' writer keeps its last count to itself until it is destroyed, which takes as long as somebody
    holds a frame that knows it: a profiler's thread, a debugger. The package would have the count before.
    """
    size, end, count = blob.stat().st_size, RECORD_BYTES, 0
    with blob.open("r+b") as file:
        while end < size:
            file.seek(end)
            _, _, data_bytes, data = struct.unpack("<IIQQ", file.read(24))
            end = -(-(data + data_bytes) // RECORD_BYTES) * RECORD_BYTES
            count += 1
        file.seek(0)
        file.write(struct.pack("<I", count))


def first_of_each(weights: dict[str, CompressedWeight]) -> dict[str, str]:
    """Name -> the first name whose weight has the same codes: tied weights, and weights that happen to be
    equal, are stored once."""
    seen: dict[tuple, list[str]] = {}
    first = {}
    for name, weight in weights.items():
        alike = seen.setdefault((weight.shape, type(weight.values)), [])
        first[name] = next((other for other in alike if _equal(weights[other], weight)), name)
        if first[name] == name:
            alike.append(name)
    return first


def _equal(first: CompressedWeight, second: CompressedWeight) -> bool:
    return first is second or (
        _same(first.values, second.values)
        and _same(first.mask, second.mask)
        and _same(first.surviving, second.surviving)
    )


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return (
            first.shape == second.shape
            and torch.equal(first.flatten()[:64], second.flatten()[:64])
            and torch.equal(first, second)
        )
    if hasattr(first, "__dataclass_fields__") and type(first) is type(second):
        return all(
            _same(getattr(first, field), getattr(second, field)) for field in first.__dataclass_fields__
        )
    return type(first) is type(second) and first == second


def _converted(
    program: Any, weights: dict, build: Callable[[str, str], Any], outputs: list, target: Any, precision: Any
) -> Any:
    """coremltools' Program after all passes but those that fail over it, each compressed weight built by
    `build`."""
    names, broken = mark_compressed(program, weights), set[str]()
    with weights_built_by(build, names), lean_passes(), sound_passes(), sound_translations():
        while True:
            try:
                return _convert(
                    program,
                    convert_to="milinternal",
                    outputs=outputs,
                    minimum_deployment_target=target,
                    pass_pipeline=pass_pipeline(broken),
                    compute_precision=precision,
                )
            except BrokenPass as error:
                broken.add(error.name)


def _find_places(program: Any, names: list[str]) -> dict[str, Any]:
    """Name -> the Var of its place, in the order of the program."""
    places = {}
    for operation in program.functions["main"].operations:
        index = place_index(operation)
        if index is not None and index < len(names) and operation.outputs[0].child_ops:
            places[names[index]] = operation.outputs[0]
    return places


def _remove(block: Any, operations: list) -> None:
    """Operations that nothing uses any more, and the constants (and further constexpr operations) that only
    they used."""
    while operations:
        block.remove_ops(operations)
        inputs = [value for operation in operations for value in operation.inputs.values()]
        values = [
            value
            for item in inputs
            for value in (item if isinstance(item, list | tuple) else [item])
            if value is not None
        ]
        operations = list(
            dict.fromkeys(value.op for value in values if value.op is not None and not value.child_ops)
        )


def _convert(program: Any, **options: Any) -> Any:
    """ct.convert, whose complaints about an operator become UnsupportedOperators with its module and source
    line."""
    import coremltools as ct

    try:
        mil = ct.convert(program, **options)
        mil._check_early_error_out_for_invalid_program()  # what coremltools does before it writes
        return mil
    except BrokenPass:
        raise
    except Exception as error:
        node = _failing_node(error, program)
        if node is None:
            raise
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UnsupportedOperators("Core ML", [f"{describe(node)}: {reason}"], OTHER_OPERATORS) from error


def _failing_node(error: Exception, program: Any) -> Any:
    """The node whose translation raised, named by a frame of coremltools' frontend or by a message ('Layer
    "view_7_cast_fp16"', '%add_54:')."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "convert_single_node":
            return nodes.get(trace.tb_frame.f_locals["node"].name)
        trace = trace.tb_next
    layer = re.search(r'(?:Layer "|%)(\w+)', str(error))
    return max(
        (node for name, node in nodes.items() if layer and layer[1].startswith(name)),
        key=lambda node: len(node.name),
        default=None,
    )
