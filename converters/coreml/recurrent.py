"""Recurrent layers in Core ML's operators: one operator of `models.recurrent_operators` enters coremltools'
frontend, `lstm`, `rnn` or a loop leaves, with its weights as they are stored.

Core ML's `gru` multiplies the state by the reset gate before the product, torch after it. From iOS18 on it
has an option for torch's order, with which coremltools' own test of it fails (`test_pytorch_parity` of
mil/ops/tests/iOS18/test_recurrent.py, rdar://128479517): a GRU becomes a `while_loop`, as coremltools writes
it. So does an LSTM whose outputs are projected, which Core ML's `lstm` has no weight for. `lstm` is asked for
both directions or the first; other layers in reverse are turned around outside, as the order of their
outputs is not documented.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...models.recurrent_operators import LSTM, RNN

FEW_STEPS = 8  # up to which a loop is written out: loops run on the CPU alone, and cost a start of each turn


def has_no_operator(node: torch.fx.Node) -> bool:
    """Whether a layer's operator is better written step by step: neither Core ML's own nor worth a loop."""
    native = node.target is RNN or (node.target is LSTM and node.args[9] is None)
    return not native and node.args[0].meta["val"].shape[0] <= FEW_STEPS


@contextmanager
def recurrent_translators() -> Iterator[None]:
    """coremltools' frontend knows the operators of recurrent layers inside."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    known = _TORCH_OPS_REGISTRY.name_to_func_mapping
    names = {f"cidermill::{function.__name__}": function for function in (lstm_layer, gru_layer, rnn_layer)}
    known.update(names)
    try:
        yield
    finally:
        for name in names:
            known.pop(name, None)


def lstm_layer(context: Any, node: Any) -> None:
    """Core ML's `lstm`, or a loop where its outputs are projected."""
    from coremltools.converters.mil import Builder as mb

    x, h, c, *weights, weight_hr, reverse = _inputs(context, node)
    if weight_hr is not None:
        _projected(context, node, x, (h, c), (*weights[:3], weight_hr), reverse)
        return
    names = ("weight_ih", "weight_hh", "bias", "weight_ih_back", "weight_hh_back", "bias_back")
    given = {name: weight for name, weight in zip(names, weights, strict=True) if weight is not None}
    direction = "bidirectional" if "weight_ih_back" in given else "forward"
    out, *last = mb.lstm(
        x=_turned(x, reverse),
        initial_h=h,
        initial_c=c,
        direction=direction,
        output_sequence=True,
        name=node.name,
        **given,
    )
    context.add((_turned(out, reverse), *last), torch_name=node.name)


def rnn_layer(context: Any, node: Any) -> None:
    """Core ML's `rnn`."""
    from coremltools.converters.mil import Builder as mb

    x, h, weight_ih, weight_hh, bias, relu, reverse = _inputs(context, node)
    out, last = mb.rnn(
        x=_turned(x, reverse),
        initial_h=h,
        weight_ih=weight_ih,
        weight_hh=weight_hh,
        activation="relu" if relu.val else "tanh",
        output_sequence=True,
        name=node.name,
        **({} if bias is None else {"bias": bias}),
    )
    context.add((_turned(out, reverse), last), torch_name=node.name)


def gru_layer(context: Any, node: Any) -> None:
    """A loop whose step computes as torch's GRU does."""
    from coremltools.converters.mil import Builder as mb

    x, h, weight_ih, weight_hh, bias_ih, bias_hh, reverse = _inputs(context, node)
    units = weight_hh.shape[1]

    def step(given: Any, h: Any) -> tuple[Any]:
        total = _linear(h, weight_hh, bias_hh)
        given_gates, given_new = mb.split(x=given, split_sizes=[2 * units, units], axis=-1)
        gates, product = mb.split(x=total, split_sizes=[2 * units, units], axis=-1)
        gates = mb.sigmoid(x=mb.add(x=given_gates, y=gates))
        reset, update = mb.split(x=gates, num_splits=2, axis=-1)
        new = mb.tanh(x=mb.add(x=given_new, y=mb.mul(x=reset, y=product)))
        return (mb.add(x=new, y=mb.mul(x=update, y=mb.sub(x=h, y=new))),)

    context.add(_loop(_linear(x, weight_ih, bias_ih), (h,), step, reverse), torch_name=node.name)


def _projected(
    context: Any, node: Any, x: Any, states: tuple[Any, Any], weights: tuple[Any, ...], reverse: Any
) -> None:
    from coremltools.converters.mil import Builder as mb

    weight_ih, weight_hh, bias, weight_hr = weights
    units = weight_hr.shape[1]

    def step(given: Any, h: Any, c: Any) -> tuple[Any, Any]:
        total = mb.add(x=given, y=_linear(h, weight_hh, None))
        gates, cell = mb.split(x=total, split_sizes=[3 * units, units], axis=-1)
        i, f, o = mb.split(x=mb.sigmoid(x=gates), num_splits=3, axis=-1)
        c = mb.add(x=mb.mul(x=f, y=c), y=mb.mul(x=i, y=mb.tanh(x=cell)))
        return _linear(mb.mul(x=o, y=mb.tanh(x=c)), weight_hr, None), c

    context.add(_loop(_linear(x, weight_ih, bias), states, step, reverse), torch_name=node.name)


def _loop(
    gates: Any, states: tuple[Any, ...], step: Callable[..., tuple[Any, ...]], reverse: Any
) -> tuple[Any, ...]:
    """gates [steps, batch, n] -> (outputs [steps, batch, units], last states), as
    `recurrent_operators._over_steps`. Each turn writes its output into a row of a tensor that goes round."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    gates = _turned(gates, reverse)
    steps, batch, _ = gates.shape
    blank = mb.fill(shape=[steps, batch, states[0].shape[1]], value=np.float32(0))

    def before_end(turn: Any, outputs: Any, *states: Any) -> Any:
        return mb.less(x=turn, y=np.int32(steps))

    def body(turn: Any, outputs: Any, *states: Any) -> tuple[Any, ...]:
        given = mb.squeeze(x=mb.gather(x=gates, indices=turn, axis=0), axes=[0])
        following = step(given, *states)
        row = mb.expand_dims(x=following[0], axes=[0])
        outputs = mb.scatter(data=outputs, indices=turn, updates=row, axis=0, mode="update")
        return mb.add(x=turn, y=np.int32(1)), outputs, *following

    start = np.array([0], np.int32)
    _, outputs, *last = mb.while_loop(_cond=before_end, _body=body, loop_vars=(start, blank, *states))
    return _turned(outputs, reverse), *last


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    from coremltools.converters.mil import Builder as mb

    return mb.linear(x=x, weight=weight, **({} if bias is None else {"bias": bias}))


def _turned(x: Any, reverse: Any) -> Any:
    """x with its steps, the first axis, from the last to the first where a layer runs in reverse."""
    from coremltools.converters.mil import Builder as mb

    return mb.reverse(x=x, axes=[0]) if reverse.val else x


def _inputs(context: Any, node: Any) -> list[Any]:
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    inputs: list[Any] = _get_inputs(context, node)
    return inputs
