"""MIL recurrent layers: x [steps, batch, inputs], weights with their gates stacked along the first axis."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from ...resources import ELEMENT_COST, announced
from .arguments import scalar

ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "scaled_tanh": (
        torch.tanh
    ),  # its factors have no parameter here and are 1 (coremltools' iOS14/test_recurrent.py)
}


def _steps(x: torch.Tensor, direction: str) -> list[torch.Tensor]:
    return list(x.flip(0) if direction == "reverse" else x)


def _looping(
    given: torch.Tensor, weight_hh: torch.Tensor, *others: torch.Tensor | None
) -> AbstractContextManager[Callable[[], None]]:
    """What the steps over `given` [steps, batch, gates] allocate and take, told the meter in one piece.
    others: what may make a step's results larger."""
    known = [given[:1], *(tensor for tensor in others if tensor is not None)]
    rows = max(tensor.numel() // max(tensor.shape[-1], 1) for tensor in known)
    steps, gates = given.shape[0], weight_hh.shape[0]
    work = steps * (rows * gates * (weight_hh.shape[-1] + ELEMENT_COST) + ELEMENT_COST * weight_hh.numel())
    return announced(4 * given.itemsize * steps * rows * gates, work)


def _sequence(states: list[torch.Tensor], output_sequence: bool) -> torch.Tensor:
    """All states in the order in which they were computed ("reverse" begins with the last step), or the last
    one.

    This order is that of coremltools' operator tests (iOS14/test_recurrent.py); only a bidirectional lstm
    returns to the input's order.
    """
    return torch.stack(states) if output_sequence else states[-1][None]


def rnn(
    x,
    initial_h,
    weight_ih,
    weight_hh,
    bias=None,
    direction="forward",
    output_sequence=False,
    activation="tanh",
):
    h, states, turned = initial_h, [], weight_hh.T
    given = x @ weight_ih.T if bias is None else x @ weight_ih.T + bias
    steps = _steps(given, direction)
    with _looping(given, weight_hh, h) as turn:
        for step in steps:
            turn()
            h = ACTIVATIONS[activation](step + h @ turned)
            states.append(h)
    return _sequence(states, output_sequence), h


def gru(
    x,
    initial_h,
    weight_ih,
    weight_hh,
    bias=None,
    direction="forward",
    output_sequence=False,
    recurrent_activation="sigmoid",
    activation="tanh",
    reset_after=False,
    input_bias=None,
):
    """Gates are stacked as reset, output, update. reset_after: the reset gate multiplies the product with the
    state, not the state."""
    outer, inner, size = ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation], initial_h.shape[-1]
    hidden_bias = torch.zeros(3 * size) if bias is None else bias
    h, states = initial_h, []
    given = x @ weight_ih.T if input_bias is None else x @ weight_ih.T + input_bias
    w_r, w_o, w_z = (weight.T for weight in weight_hh.chunk(3, 0))
    b_r, b_o, b_z = hidden_bias.chunk(3)
    steps = _steps(given, direction)
    with _looping(given, weight_hh, h, hidden_bias) as turn:
        for step in steps:
            turn()
            x_r, x_o, x_z = step.chunk(3, -1)
            r, z = outer(x_r + h @ w_r + b_r), outer(x_z + h @ w_z + b_z)
            o = inner(x_o + (r * (h @ w_o + b_o) if reset_after else (r * h) @ w_o + b_o))
            h = (1 - z) * o + z * h
            states.append(h)
    return _sequence(states, output_sequence), h


def _lstm_pass(
    x, h, c, weight_ih, weight_hh, bias, peephole, direction, activations, clip
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """One direction; gates are stacked as input, forget, output, cell. -> states, last cell"""
    outer, cell, final = (ACTIVATIONS[name] for name in activations)
    peep = None if peephole is None else peephole.chunk(3)
    states, turned = [], weight_hh.T
    # of all steps at once: what a runner spends on a step is the calls
    given = x @ weight_ih.T if bias is None else x @ weight_ih.T + bias
    steps = _steps(given, direction)
    with _looping(given, weight_hh, h, c, peephole) as turn:
        for step in steps:
            turn()
            i, f, o, z = (step + h @ turned).chunk(4, -1)
            if peep is not None:
                i, f = i + peep[0] * c, f + peep[1] * c
            c = outer(f) * c + outer(i) * cell(z)
            c = c if clip is None else c.clamp(-scalar(clip), scalar(clip))
            h = outer(o if peep is None else o + peep[2] * c) * final(c)
            states.append(h)
    return states, c


def _of_batch(state: torch.Tensor, batch: int) -> torch.Tensor:
    """More rows than examples are taken where all are equal: coremltools fills the state of a packed sequence
    with as many rows of zeros as the first sequence has steps, and Apple runs such programs on Macs."""
    surplus = state.shape[0] > batch and bool((state == state[:1]).all())
    return state[:batch] if surplus else state


def lstm(
    x,
    initial_h,
    initial_c,
    weight_ih,
    weight_hh,
    bias=None,
    direction="forward",
    output_sequence=False,
    recurrent_activation="sigmoid",
    cell_activation="tanh",
    activation="tanh",
    peephole=None,
    clip=None,
    weight_ih_back=None,
    weight_hh_back=None,
    bias_back=None,
    peephole_back=None,
):
    """-> states, last state, last cell. Bidirectional: both directions side by side in the last axis."""
    names = (recurrent_activation, cell_activation, activation)
    initial_h, initial_c = _of_batch(initial_h, x.shape[1]), _of_batch(initial_c, x.shape[1])
    if direction != "bidirectional":
        states, c = _lstm_pass(
            x, initial_h, initial_c, weight_ih, weight_hh, bias, peephole, direction, names, clip
        )
        return _sequence(states, output_sequence), states[-1], c
    (h_f, h_b), (c_f, c_b) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    ahead, c_f = _lstm_pass(x, h_f, c_f, weight_ih, weight_hh, bias, peephole, "forward", names, clip)
    back, c_b = _lstm_pass(
        x, h_b, c_b, weight_ih_back, weight_hh_back, bias_back, peephole_back, "reverse", names, clip
    )
    turned = back[::-1] if output_sequence else back
    sequence = torch.cat([_sequence(ahead, output_sequence), _sequence(turned, output_sequence)], -1)
    return sequence, torch.cat([ahead[-1], back[-1]], -1), torch.cat([c_f, c_b], -1)


RECURRENT = {function.__name__: function for function in (rnn, gru, lstm)}
