"""Recurrent layers as operators of a captured program, and the same step by step.

torch's own operators hold all layers and directions at once, their weights in lists, and are taken apart
step by step where a program is made of core operators. Here a layer is one operator, `cidermill::lstm_layer`,
`gru_layer` or `rnn_layer`, whose weights are arguments of their own: a target that has such an operator
writes it, another takes `STEPS`, in which the product with the inputs is one linear layer for all steps.

x [steps, batch, inputs], states [batch, units], weights [gates * units, inputs or units]. reverse: the last
step comes first; outputs stand at their inputs' places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

Tensors = tuple[torch.Tensor, ...]

_library = torch.library.Library("cidermill", "FRAGMENT")
_library.define(
    "lstm_layer(Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh, Tensor? bias,"
    " Tensor? weight_ih_back, Tensor? weight_hh_back, Tensor? bias_back, Tensor? weight_hr, bool reverse)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "gru_layer(Tensor x, Tensor h, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh,"
    " bool reverse) -> (Tensor, Tensor)"
)
_library.define(
    "rnn_layer(Tensor x, Tensor h, Tensor weight_ih, Tensor weight_hh, Tensor? bias, bool relu,"
    " bool reverse) -> (Tensor, Tensor)"
)


def swap_gates(rows: torch.Tensor) -> torch.Tensor:
    """[4 * units, ...] in torch's order, input, forget, cell, output -> in that of `lstm_layer`, with the
    cell last, and back."""
    units = rows.shape[0] // 4
    return torch.cat([rows[: 2 * units], rows[3 * units :], rows[2 * units : 3 * units]])


def _lstm_layer(
    x, h, c, weight_ih, weight_hh, bias, weight_ih_back, weight_hh_back, bias_back, weight_hr, reverse
):
    """Gates: input, forget, output, cell. With weights of both directions, states and outputs of the two lie
    side by side in the last axis. weight_hr [projected, units]: what is put out and fed back is
    weight_hr @ h."""
    both = weight_ih_back is not None
    weights = _for_torch(weight_ih, weight_hh, bias, weight_hr)
    weights += _for_torch(weight_ih_back, weight_hh_back, bias_back, None) if both else []
    states = [torch.stack(state.chunk(2, -1)) if both else state[None] for state in (h, c)]
    x = x.flip(0) if reverse else x
    out, *last = torch._VF.lstm(x, states, weights, bias is not None, 1, 0.0, False, both, False)
    return out.flip(0) if reverse else out, *(torch.cat(list(state), -1) for state in last)


def _for_torch(weight_ih, weight_hh, bias, weight_hr) -> list[torch.Tensor]:
    weights = [swap_gates(weight_ih), swap_gates(weight_hh)]
    if bias is not None:
        weights += [swap_gates(bias), torch.zeros_like(bias)]
    return weights if weight_hr is None else [*weights, weight_hr]


def _gru_layer(x, h, weight_ih, weight_hh, bias_ih, bias_hh, reverse):
    """Gates: reset, update, new; the reset gate multiplies the product with the state."""
    weights = [weight_ih, weight_hh] + ([] if bias_ih is None else [bias_ih, bias_hh])
    x = x.flip(0) if reverse else x
    out, last = torch._VF.gru(x, h[None], weights, bias_ih is not None, 1, 0.0, False, False, False)
    return out.flip(0) if reverse else out, last[0]


def _rnn_layer(x, h, weight_ih, weight_hh, bias, relu, reverse):
    weights = [weight_ih, weight_hh] + ([] if bias is None else [bias, torch.zeros_like(bias)])
    run = torch._VF.rnn_relu if relu else torch._VF.rnn_tanh
    x = x.flip(0) if reverse else x
    out, last = run(x, h[None], weights, bias is not None, 1, 0.0, False, False, False)
    return out.flip(0) if reverse else out, last[0]


_library.impl("lstm_layer", _lstm_layer, "CompositeImplicitAutograd")
_library.impl("gru_layer", _gru_layer, "CompositeImplicitAutograd")
_library.impl("rnn_layer", _rnn_layer, "CompositeImplicitAutograd")

LSTM = torch.ops.cidermill.lstm_layer.default
GRU = torch.ops.cidermill.gru_layer.default
RNN = torch.ops.cidermill.rnn_layer.default


# Step by step


def _over_steps(gates: torch.Tensor, states: Tensors, step: Callable[..., Tensors], reverse: bool) -> Tensors:
    """gates [steps, batch, n] -> (outputs [steps, batch, units], last states). `step(gates of one, *states)`
    gives the next states, of which the first is the output."""
    steps, batch, count = gates.shape
    rows = gates.reshape(steps * batch, count)
    outputs: list[torch.Tensor] = []
    for start in range(0, steps * batch, batch):
        at = steps * batch - batch - start if reverse else start
        states = step(rows[at : at + batch], *states)
        outputs.append(states[0])
    ordered = outputs[::-1] if reverse else outputs
    sequence = torch.cat(ordered) if steps > 1 else ordered[0]
    return sequence.reshape(steps, batch, -1), *states


def lstm_steps(
    x, h, c, weight_ih, weight_hh, bias, weight_ih_back, weight_hh_back, bias_back, weight_hr, reverse
) -> Tensors:
    """As `lstm_layer`."""
    units = weight_hh.shape[0] // 4

    def step(given, h, c):
        total = given + linear(h, weight_hh)
        open_by = torch.sigmoid(total[:, : 3 * units])  # how far the gates are open
        into_cell = open_by[:, :units] * torch.tanh(total[:, 3 * units :])
        c = open_by[:, units : 2 * units] * c + into_cell
        h = open_by[:, 2 * units :] * torch.tanh(c)
        return h if weight_hr is None else linear(h, weight_hr), c

    if weight_ih_back is None:
        return _over_steps(linear(x, weight_ih, bias), (h, c), step, reverse)
    none = (None, None, None)
    forward, backward = (weight_ih, weight_hh, bias), (weight_ih_back, weight_hh_back, bias_back)
    ahead = lstm_steps(x, h[:, :units], c[:, :units], *forward, *none, None, False)
    back = lstm_steps(x, h[:, units:], c[:, units:], *backward, *none, None, True)
    return tuple(torch.cat(pair, -1) for pair in zip(ahead, back))


def gru_steps(x, h, weight_ih, weight_hh, bias_ih, bias_hh, reverse) -> Tensors:
    """As `gru_layer`."""
    units = weight_hh.shape[1]

    def step(given, h):
        total = linear(h, weight_hh, bias_hh)
        open_by = torch.sigmoid(given[:, : 2 * units] + total[:, : 2 * units])
        new = torch.tanh(given[:, 2 * units :] + open_by[:, :units] * total[:, 2 * units :])
        return (new + open_by[:, units:] * (h - new),)

    return _over_steps(linear(x, weight_ih, bias_ih), (h,), step, reverse)


def rnn_steps(x, h, weight_ih, weight_hh, bias, relu, reverse) -> Tensors:
    """As `rnn_layer`."""
    squash = torch.relu if relu else torch.tanh

    def step(given, h):
        return (squash(given + linear(h, weight_hh)),)

    return _over_steps(linear(x, weight_ih, bias), (h,), step, reverse)


STEPS = {LSTM: lstm_steps, GRU: gru_steps, RNN: rnn_steps}

# (operator, place of a weight that the states are multiplied by) -> whether it is the one of the way back
OF_STATES = {(LSTM, 4): False, (LSTM, 7): True, (GRU, 3): False, (RNN, 3): False}


def states_before(operator: torch._ops.OpOverload, args: tuple[Any, ...], back: bool) -> torch.Tensor:
    """[steps, batch, units]: what a layer's weight of the states was multiplied by, in the order of the
    inputs."""
    first, outputs = args[1], operator(*args)[0]
    if operator is LSTM and args[6] is not None:
        side = slice(args[4].shape[1], None) if back else slice(args[4].shape[1])
        first, outputs = first[:, side], outputs[..., side]
    if back or args[-1]:
        return torch.cat([outputs[1:], first[None]])
    return torch.cat([first[None], outputs[:-1]])
