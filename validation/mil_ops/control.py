"""MIL states, lists, control flow and classification.

`CONTROL` operators run nested graphs: they take the node's blocks and `run(block, inputs) -> list of outputs` besides their arguments.
"""
from collections.abc import Callable
from typing import Any

import torch

from ..graph import Graph
from .arguments import ints, scalar, tensor


def read_state(input):
    return input.clone()


def write_state(input, data):
    input.copy_(data)
    return ()


def coreml_update_state(state, value):
    state.copy_(value)
    return value


def make_list(init_length=1, dynamic_length=True, elem_shape=(), dtype="fp32"):
    """A list of tensors is a Python list; places that were never written are None."""
    return ([None] * scalar(init_length),)


def list_length(ls):
    return torch.tensor(len(ls), dtype=torch.int32)


def list_write(ls, index, value):
    index = scalar(index)
    longer = list(ls) + [None] * max(index + 1 - len(ls), 0)
    longer[index] = value
    return (longer,)


def list_read(ls, index):
    return ls[scalar(index)]


def list_gather(ls, indices):
    return torch.stack([ls[i] for i in ints(indices)])


def list_scatter(ls, indices, value):
    result = list(ls)
    for i, item in zip(ints(indices), value):
        result += [None] * max(i + 1 - len(result), 0)
        result[i] = item
    return (result,)


def classify(probabilities, classes):
    """-> the most probable class and the probability of every class."""
    flat = tensor(probabilities).flatten()
    return classes[int(flat.argmax())], dict(zip(classes, flat.tolist()))


def cond(blocks: tuple[Graph, ...], run: Callable, pred) -> tuple:
    return tuple(run(blocks[0] if bool(scalar(pred)) else blocks[1], ()))


def while_loop(blocks: tuple[Graph, ...], run: Callable, loop_vars) -> tuple:
    """blocks: the condition, then the body; both take the loop variables in order."""
    values: list[Any] = loop_vars if isinstance(loop_vars, list) else [loop_vars]
    while bool(scalar(run(blocks[0], values)[0])):
        values = run(blocks[1], values)
    return tuple(values)


STATES_AND_LISTS = {function.__name__: function for function in (
    read_state, write_state, coreml_update_state, make_list, list_length, list_write, list_read, list_gather, list_scatter, classify,
)}
CONTROL = {"cond": cond, "while_loop": while_loop}
