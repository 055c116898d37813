"""torch's recurrent operators in a draft, stacked and in both directions, become one operator a layer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.fx import Node

from .errors import UserError
from .graphs import Draft, describe, insert, is_op, places_of, retrace_results
from .recurrent_operators import GRU, LSTM, RNN, STEPS, swap_gates
from .simplify import (
    call,
    depends_on_inputs,
    drop_no_ops,
    evaluate_constant,
    fold_constants,
    products_to_linear,
    views_to_reshapes,
)

aten = torch.ops.aten

KINDS = {  # torch's operators -> ours
    aten.lstm.input: LSTM,
    aten.gru.input: GRU,
    aten.rnn_tanh.input: RNN,
    aten.rnn_relu.input: RNN,
}


class Weights(NamedTuple):
    """The weights of one layer in one direction."""

    ih: Node
    hh: Node
    bias_ih: Node | None
    bias_hh: Node | None
    hr: Node | None


@dataclass
class Rewrite:
    """A draft whose recurrent operators are being replaced.

    computed: nodes that an input decides. turned: an LSTM's weight -> the same with its gates in our order;
    constants: a view of a constant -> a constant; biases: two biases -> their sum; tied: memory -> a weight,
    and the same with its gates turned.
    """

    work: Draft
    computed: set[Node]
    turned: dict[Node, Node] = field(default_factory=dict)
    constants: dict[Node, Node] = field(default_factory=dict)
    biases: dict[tuple[Node, Node], Node] = field(default_factory=dict)
    tied: dict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def turn(self, origin: Node, rows: Node) -> Node:
        """An LSTM's weight or bias in the order of `lstm_layer`; a weight keeps its name where no other
        operator reads it."""
        if rows not in self.turned:
            self.turned[rows] = self._turn(origin, rows)
        return self.turned[rows]

    def _turn(self, origin: Node, rows: Node) -> Node:
        tensor = self.work.tensor_of(rows)
        if tensor is None:
            return insert(self.work, origin, swap_gates, rows)
        memory = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if memory not in self.tied:
            swapped = torch.nn.Parameter(swap_gates(tensor.detach()), requires_grad=False)
            self.tied[memory] = (tensor, swapped)  # with the tensor, whose address then stays its own
        swapped = self.tied[memory][1]
        name = self.work.constants[rows.name][0]
        if any(user.target is not aten.lstm.input for user in rows.users):
            return self.work.add_constant(f"{name}_gates", swapped, like=origin)
        self.work.constants[rows.name] = (name, swapped)
        return rows


def one_operator_a_layer(work: Draft) -> bool:
    """1. The weights of every layer and direction become arguments of their own; an LSTM's gates are put into
    the order that Core ML stores. 2. A layer whose weights inputs decide is written step by step.

    After `fold_constants`, which computes weights that come from other constants (a weight norm).
    Raises UserError for dropout between layers in training.
    """
    nodes = [node for node in work.graph.nodes if is_op(node, *KINDS)]
    if not nodes:
        return False
    rewrite = Rewrite(work, depends_on_inputs(work))
    for node in nodes:
        _replace(rewrite, node)
    fold_constants(work)  # initial states that were joined
    return True


def take_steps(work: Draft, chosen: Callable[[Node], bool] = lambda node: True) -> bool:
    """The chosen layers are written step by step. First, while weights are Parameters: their products become
    linear layers."""
    nodes = [node for node in work.graph.nodes if is_op(node, *STEPS) and chosen(node)]
    for node in nodes:
        retrace_results(work, node, STEPS[node.target], *node.args)
    if nodes:
        views_to_reshapes(work)
        drop_no_ops(work)
        products_to_linear(work)
        work.graph.eliminate_dead_code()
    return bool(nodes)


def _replace(rewrite: Rewrite, node: Node) -> None:
    """A recurrent operator of torch becomes one of ours for each layer."""
    work = rewrite.work
    x, given_states, flat, biased, layers, dropout, train, both, batch_first = node.args
    if train and dropout and layers > 1:
        raise UserError(
            f"The model drops values at random between its recurrent layers: {describe(node)}.",
            "Call model.eval() before it is exported or saved.",
        )
    kind = KINDS[node.target]
    states = list(given_states) if kind is LSTM else [given_states]
    directions = 2 if both else 1
    weights = _by_direction([_constant(rewrite, node, each) for each in flat], biased, layers * directions)
    last: list[list[Node]] = [[] for _ in states]
    with work.graph.inserting_before(node):
        x = call(work, node, aten.permute.default, x, [1, 0, 2]) if batch_first else x
        for layer in range(layers):
            places = range(layer * directions, (layer + 1) * directions)
            starts = [[_state(work, node, state, place) for place in places] for state in states]
            x, ends = _layer(rewrite, node, x, starts, weights[places.start : places.stop])
            for collected, end in zip(last, ends, strict=True):
                collected.extend(end)
        x = call(work, node, aten.permute.default, x, [1, 0, 2]) if batch_first else x
        results = [x, *(_stacked(work, node, ends) for ends in last)]
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        work.graph.erase_node(user)
    work.graph.erase_node(node)


def _constant(rewrite: Rewrite, origin: Node, weight: Node) -> Node:
    """A weight that is a view of a constant, as a constant of its own; any other as it is."""
    work = rewrite.work
    if weight in rewrite.computed or work.tensor_of(weight) is not None:
        return weight
    if weight not in rewrite.constants:
        value = torch.nn.Parameter(evaluate_constant(work, weight, {}).contiguous(), requires_grad=False)
        rewrite.constants[weight] = work.add_constant(f"{weight.name}_folded", value, like=origin)
    return rewrite.constants[weight]


def _by_direction(flat: Sequence[Node], biased: bool, count: int) -> list[Weights]:
    """torch's list of weights -> those of each layer and direction, `count` in all."""
    each = len(flat) // count
    result = []
    for start in range(0, len(flat), each):
        ih, hh, *others = flat[start : start + each]
        biases = others[:2] if biased else [None, None]
        projection = others[len(others) - 1] if each % 2 else None
        result.append(Weights(ih, hh, biases[0], biases[1], projection))
    return result


def _state(work: Draft, origin: Node, states: Node, place: int) -> Node:
    """[layers * directions, batch, units] -> one of them, [batch, units]"""
    constant = work.tensor_of(states)
    if constant is None:
        return call(work, origin, aten.select.int, states, 0, place)
    return work.add_constant(f"{origin.name}_state", constant.detach()[place].clone(), like=origin)


def _stacked(work: Draft, origin: Node, states: list[Node]) -> Node:
    """[batch, units] of each -> [count, batch, units]"""
    lifted = [call(work, origin, aten.unsqueeze.default, state, 0) for state in states]
    return lifted[0] if len(lifted) == 1 else call(work, origin, aten.cat.default, lifted)


def _layer(
    rewrite: Rewrite, origin: Node, x: Node, starts: list[list[Node]], weights: list[Weights]
) -> tuple[Node, list[list[Node]]]:
    """-> (outputs [steps, batch, directions * units], of each kind of state the last one of each direction).
    starts: alike, the first ones."""
    work, both = rewrite.work, len(weights) == 2
    if both and origin.target is aten.lstm.input and weights[0].hr is None:
        sides = [call(work, origin, aten.cat.default, pair, -1) for pair in starts]
        x, *last = _operator(rewrite, origin, x, sides, weights, False)
        units = weights[0].hh.meta["val"].shape[1]
        halves = [(0, units), (units, 2 * units)]
        return x, [[call(work, origin, aten.slice.Tensor, end, 1, *half) for half in halves] for end in last]
    results = [
        _operator(rewrite, origin, x, [pair[side] for pair in starts], [one], reverse=side == 1)
        for side, one in enumerate(weights)
    ]
    outputs, *last_of_each = zip(*results)
    out = call(work, origin, aten.cat.default, list(outputs), -1) if both else outputs[0]
    return out, [list(states) for states in last_of_each]


def _operator(
    rewrite: Rewrite, origin: Node, x: Node, states: list[Node], weights: list[Weights], reverse: bool
) -> list[Node]:
    """A layer's operator -> its results: outputs and last states."""
    work, kind = rewrite.work, KINDS[origin.target]
    options = [origin.target is aten.rnn_relu.input] if kind is RNN else []
    arguments = (x, *states, *_arguments(rewrite, origin, weights), *options, reverse)
    node = work.graph.call_function(kind, arguments)
    node.meta = places_of(origin)
    given, width = x.meta["val"], states[0].meta["val"].shape[1]
    shapes = [(*given.shape[:2], width), *(tuple(state.meta["val"].shape) for state in states)]
    node.meta["val"] = tuple(given.new_empty(shape) for shape in shapes)
    results = []
    for place, value in enumerate(node.meta["val"]):
        results.append(work.graph.call_function(operator.getitem, (node, place)))
        results[-1].meta = {**places_of(origin), "val": value}
    if any(weight in rewrite.computed for one in weights for weight in one if weight is not None):
        return retrace_results(work, node, STEPS[kind], *arguments)
    return results


def _arguments(rewrite: Rewrite, origin: Node, weights: list[Weights]) -> tuple[Node | None, ...]:
    """What an operator of ours takes between its states and its options."""
    first = weights[0]
    if origin.target is aten.gru.input:
        return first[:4]
    if origin.target is not aten.lstm.input:
        return first.ih, first.hh, _bias(rewrite, origin, first)
    sides: list[Node | None] = []
    for one in weights:
        bias = _bias(rewrite, origin, one)
        sides += [rewrite.turn(origin, one.ih), rewrite.turn(origin, one.hh)]
        sides.append(None if bias is None else rewrite.turn(origin, bias))
    return *sides, *[None] * (6 - len(sides)), first.hr


def _bias(rewrite: Rewrite, origin: Node, weights: Weights) -> Node | None:
    """The two biases of a layer in one."""
    work = rewrite.work
    if weights.bias_ih is None or weights.bias_hh is None:
        return None
    first, second = work.tensor_of(weights.bias_ih), work.tensor_of(weights.bias_hh)
    if first is None or second is None:
        return insert(work, origin, torch.add, weights.bias_ih, weights.bias_hh)
    key = (weights.bias_ih, weights.bias_hh)
    if key not in rewrite.biases:
        total = (first.detach().double() + second.detach().double()).to(first.dtype)
        name = work.constants[weights.bias_ih.name][0].replace("bias_ih", "bias")
        rewrite.biases[key] = work.add_constant(
            name, torch.nn.Parameter(total, requires_grad=False), like=origin
        )
    return rewrite.biases[key]
