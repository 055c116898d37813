"""MIL states, lists, control flow and classification.

`CONTROL` operators run nested graphs: they take the node's blocks and `run(block, inputs) -> list of outputs`
besides their arguments.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ...graph import Graph
from ...resources import begin_turn, reserve
from .arguments import ints, scalar, tensor

LIST_TYPES = {"fp32": torch.float32, "fp16": torch.float32, "int32": torch.int32, "bool": torch.bool}


def read_state(input):
    return input.clone()


def write_state(input, data):
    input.copy_(data)
    return ()


def coreml_update_state(state, value):
    state.copy_(value)
    return value


def make_list(init_length=1, dynamic_length=True, elem_shape=(), dtype="fp32"):
    """A list of tensors is a Python list, at first of zeros. Where the shape is known only at run time,
    places are None until a write."""
    sizes = elem_shape if isinstance(elem_shape, (list, tuple, torch.Tensor)) else [elem_shape]
    known = all(not isinstance(size, str) for size in sizes)
    reserve(8 * scalar(init_length))
    return ([torch.zeros(ints(sizes), dtype=LIST_TYPES[dtype]) if known else None] * scalar(init_length),)


def list_length(ls):
    return torch.tensor(len(ls), dtype=torch.int32)


def _written(ls: list, places: list[int], values: Iterable[torch.Tensor]) -> list:
    """A copy with values at places; it grows as far as it must, and what was never written is zero."""
    written = dict(zip(places, values))
    length = max(len(ls), max(places, default=-1) + 1)
    reserve(8 * length)
    blank = torch.zeros_like(next(iter(written.values()))) if written else None
    old = [blank if item is None else item for item in ls] + [blank] * (length - len(ls))
    return [written.get(place, item) for place, item in enumerate(old)]


def list_write(ls, index, value):
    return (_written(ls, [scalar(index)], [tensor(value)]),)


def list_read(ls, index):
    return ls[scalar(index)]


def list_gather(ls, indices):
    return torch.stack([ls[i] for i in ints(indices)])


def list_scatter(ls, indices, value):
    return (_written(ls, ints(indices), tensor(value)),)


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
        begin_turn()
        values = run(blocks[1], values)
    return tuple(values)


STATES_AND_LISTS = {
    function.__name__: function
    for function in (
        read_state,
        write_state,
        coreml_update_state,
        make_list,
        list_length,
        list_write,
        list_read,
        list_gather,
        list_scatter,
        classify,
    )
}
CONTROL: dict[str, Callable[..., Any]] = {"cond": cond, "while_loop": while_loop}
