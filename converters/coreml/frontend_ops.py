"""Translations of coremltools' torch frontend (9.0) that change what an operator computes, replaced while it
translates.

`floor_divide` divides integers as integers and then casts the quotient to float, which half precision rounds
from 2,048 on, although torch goes on with integers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...models.patched import replaced


@contextmanager
def sound_translations() -> Iterator[None]:
    """While it runs, coremltools translates these operators as torch computes them."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    known = _TORCH_OPS_REGISTRY.name_to_func_mapping
    translations = {**known, "floor_divide": _floor_divide(known["floor_divide"])}
    with replaced(_TORCH_OPS_REGISTRY, "name_to_func_mapping", translations):
        yield


def _floor_divide(translate: Any) -> Any:
    def floor_divide(context: Any, node: Any) -> None:
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs
        from coremltools.converters.mil.mil import types

        dividend, divisor = _get_inputs(context, node, expected=2)
        if not all(types.is_int(value.dtype) for value in (dividend, divisor)):
            translate(context, node)
            return
        context.add(mb.floor_div(x=dividend, y=divisor, name=node.name))

    return floor_divide
