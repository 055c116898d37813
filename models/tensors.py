"""The tensors of a program: an ExportedProgram in, its parameters, buffers and constants out, each with the
graph input that it arrives by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

# what tied tensors have in common: address, offset, shape and strides of their memory
Storage = tuple[object, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor of a program: its name in the state dict (or constants), its data, whether it is a parameter,
    its graph input."""

    name: str
    data: torch.Tensor
    is_parameter: bool
    node: torch.fx.Node


def tensors_of(program: ExportedProgram) -> tuple[Tensor, ...]:
    """Every parameter, buffer and lifted constant that is an input of the graph, in graph order."""
    signature = program.graph_signature
    parameters = signature.inputs_to_parameters  # computed anew whenever it is asked for
    names = {**parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    data = {**program.constants, **program.state_dict}
    return tuple(
        Tensor(names[node.name], data[names[node.name]], node.name in parameters, node)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    )


def storage_of(tensor: Tensor) -> Storage:
    """Equal for tied tensors: the same elements of the same memory."""
    data = tensor.data
    if data.numel() == 0:
        return (tensor.name,)
    return data.untyped_storage().data_ptr(), data.storage_offset(), tuple(data.shape), data.stride()


def all_within(tensor: torch.Tensor, lowest: float, highest: float) -> bool:
    """Whether every element of a real tensor is a number of this range (NaN is none), in one pass."""
    if tensor.numel() == 0:
        return True
    least, most = tensor.detach().aminmax()
    return bool(least >= lowest) and bool(most <= highest)


def laid_out_as(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """The tensor in the type and the memory layout of the example that a program was exported with: the
    program's assertions and views hold for no other. A layout that puts elements on top of each other is left
    out."""
    import torch

    tensor, strides = tensor.to(example.dtype), example.stride()
    repeats = any(stride == 0 and size > 1 for stride, size in zip(strides, example.shape))
    if tensor.stride() == strides or repeats:
        return tensor
    return torch.empty_strided(tuple(example.shape), strides, dtype=example.dtype).copy_(tensor)


def as_called(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Inputs of an artifact as torch models take them, which index with int64."""
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {
        name: tensor.long() if tensor.dtype == torch.int32 else tensor for name, tensor in tensors.items()
    }
