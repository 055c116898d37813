"""Matches of coremltools' passes (9.0) that change what a program computes, held back while its passes run.

1. `noop_elimination` takes floor_div(x, 1) for x, whatever numbers x holds. 2. `fuse_conv_scale` takes
constant / conv for conv / constant. 3. `fuse_pow2_sqrt` takes sqrt(x^2) for x, negative or not.

An array that a pass changes in place: 5. `fuse_conv_bias` negates the constant c of conv(x) - c where it
lies, which is the source's own memory and is read again.

And a value that is inferred as another type: 4. `concat` of less than ten elements stands for unknown ones by
symbols, and a slice of it that holds constants alone becomes integers, of real numbers too.

And a place that is gone: 6. `canonicalize_inplace_pattern` puts a state's update before the operation that
came next at first, which may be the update of another state that it has moved since (a KeyError); and it
repeats which passes made the value (7), of which there may be only one (a ValueError).

Of a model of several sizes, what is nothing at one size: 8. `noop_elimination` removes a pad by zeros, which
pads at others.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ...models.patched import replaced
from .tools import scopes_of_source


@contextmanager
def sound_passes() -> Iterator[None]:
    """While it runs, coremltools' passes leave the operations alone that they would take for others."""
    import importlib

    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.ops.defs.iOS15.tensor_operation import concat
    from coremltools.converters.mil.mil.passes.defs.cleanup.noop_elimination import noop_elimination
    from coremltools.converters.mil.mil.passes.defs.optimize_conv import fuse_conv_bias, fuse_conv_scale
    from coremltools.converters.mil.mil.passes.defs.optimize_state import canonicalize_inplace_pattern

    # the package has the pass's class under its module's name
    powers = importlib.import_module("coremltools.converters.mil.backend.mil.passes.fuse_pow2_sqrt")

    def loses_floor(op: Any) -> bool:  # 1
        return op.op_type == "floor_div" and not types.is_int(op.outputs[0].dtype)

    def divides_by_convolution(conv: Any, scale: Any) -> bool:  # 2
        return scale.op_type == "real_div" and scale.x.val is not None

    def loses_sign(op: Any) -> bool:  # 3
        return op.op_type == "pow"

    def mixes_real_numbers(concat: Any) -> bool:  # 4
        unknown = any(value.val is None for value in concat.values)
        return unknown and not types.is_int(concat.values[0].dtype)

    guards: tuple[tuple[Any, str, Callable[..., bool], Any], ...] = (
        (noop_elimination, "_match_pattern", loses_floor, None),
        (fuse_conv_scale, "_try_to_transform", divides_by_convolution, False),
        (powers, "_match_pattern", loses_sign, None),
    )
    with ExitStack() as stack:
        for owner, name, refuses, answer in guards:
            guarded = _guarded(getattr(owner, name), refuses, answer)
            stack.enter_context(
                replaced(owner, name, staticmethod(guarded) if isinstance(owner, type) else guarded)
            )
        fuses = _on_a_copy(fuse_conv_bias._try_to_transform)  # 5
        stack.enter_context(replaced(fuse_conv_bias, "_try_to_transform", staticmethod(fuses)))
        moves = _among_present(canonicalize_inplace_pattern._try_match_and_transform_pattern)  # 6
        stack.enter_context(replaced(canonicalize_inplace_pattern, "_try_match_and_transform_pattern", moves))
        stack.enter_context(
            replaced(
                canonicalize_inplace_pattern,
                "_construct_scope_info_list_from_op_scopes",
                staticmethod(scopes_of_source),  # 7
            )
        )
        infer = concat.value_inference
        stack.enter_context(
            replaced(concat, "value_inference", lambda op: None if mixes_real_numbers(op) else infer(op))
        )
        yield


@contextmanager
def pads_kept() -> Iterator[None]:
    """While it runs, a pad by zeros stays an operation (8): one program for all sizes needs it at others."""
    from coremltools.converters.mil.mil.passes.defs.cleanup.noop_elimination import noop_elimination

    match = _guarded(noop_elimination._match_pattern, lambda op: op.op_type == "pad", None)
    with replaced(noop_elimination, "_match_pattern", staticmethod(match)):
        yield


def remove_empty_pads(program: Any) -> None:
    """Change a MIL program: what was kept and pads by zeros at every size."""
    main = program.functions["main"]
    with main:
        for op in list(main.operations):
            empty = op.op_type == "pad" and op.pad.val is not None and not op.pad.val.any()
            if empty and op.outputs[0] not in main.outputs:
                main.replace_uses_of_var_after_op(op, op.outputs[0], op.x)
                main.remove_ops([op])


def _guarded(match: Callable[..., Any], refuses: Callable[..., bool], answer: Any) -> Callable[..., Any]:
    """`match`, which says `answer` where `refuses` holds for its arguments."""
    return lambda *arguments: answer if refuses(*arguments) else match(*arguments)


def _among_present(transform: Callable[..., None]) -> Callable[..., None]:
    """`transform`, which is told the operations of the block as they are when it moves an update."""

    def transform_now(owner: Any, op: Any, block: Any, _: Any) -> None:
        if any(child.op_type == "coreml_update_state" for value in op.outputs for child in value.child_ops):
            transform(owner, op, block, list(block.operations))

    return transform_now


def _on_a_copy(transform: Callable[..., bool]) -> Callable[..., bool]:
    """`transform`, which may change the constant that it subtracts from a convolution."""

    def transform_copy(convolution: Any, subtraction: Any) -> bool:
        constant = subtraction.y._sym_val
        if subtraction.op_type != "sub" or not isinstance(subtraction.y.val, np.ndarray):
            return transform(convolution, subtraction)
        original = constant.val
        constant.val = original.copy()
        try:
            return transform(convolution, subtraction)
        finally:
            constant.val = original

    return transform_copy
