"""Edge program -> the bytes of an MPS delegate, and the rule that says which nodes may enter one.

The stock serializer's node visitors do most of the work. What they get wrong is put right here by a class
that stands before each of them: their table of ids is shared by every program of the process; it identifies
1, 1.0 and True; scalars are written in another type than declared; `_to_copy` writes no cast; lifted
constants are taken for inputs; int4 needs a Mac. Stock sources: executorch/backends/apple/mps.
"""

import functools
import hashlib
from typing import Any

import torch

aten = torch.ops.aten
ALIGNMENT = 16  # bytes; every constant starts at a multiple of it
HEADER_BYTES = 24  # 4 zero bytes, "MP00", offset and size of the data segment (u64 each)
BACKEND_ID = "MPSBackend"


@functools.cache
def backend() -> type:
    """A backend for `to_backend` whose result the stock MPS runtime reads. It carries its own name:
    executorch finds backends by class name, and the stock class must stay what it is; `adopt` gives its
    delegates the runtime's name."""
    from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult

    class CidermillMPS(BackendDetails):
        @staticmethod
        def preprocess(edge_program: Any, compile_specs: list) -> PreprocessResult:
            return PreprocessResult(processed_bytes=serialize(edge_program))

    return CidermillMPS


def adopt(graph_module: torch.fx.GraphModule) -> list[Any]:
    """Give the lowered modules of a program the name under which the runtime registers. -> those modules, in
    order"""
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    modules = [
        module for _, module in graph_module.named_modules() if isinstance(module, LoweredBackendModule)
    ]
    for module in modules:
        module._backend_id = BACKEND_ID
    return modules


def partitioner(compile_specs: list) -> Any:
    """Tags all nodes that the runtime computes rightly, in as few partitions as their dependencies allow."""
    from executorch.exir.backend.canonical_partitioners.pattern_op_partitioner import (
        generate_partitions_from_list_of_nodes,
    )
    from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
    from executorch.exir.backend.utils import tag_constant_data
    from torch.fx.passes.operator_support import OperatorSupportBase

    class Support(OperatorSupportBase):
        def is_node_supported(self, submodules: Any, node: torch.fx.Node) -> bool:
            return can_delegate(node)

    class MPSPartitioner(Partitioner):
        def partition(self, exported_program: Any) -> PartitionResult:
            spec = DelegationSpec(backend().__name__, compile_specs)
            partitions = generate_partitions_from_list_of_nodes(
                exported_program.graph_module, op_support=Support()
            )
            tags = {}
            for number, partition in enumerate(partitions):
                for node in partition.nodes:
                    node.meta["delegation_tag"] = f"mps_{number}"
                tags[f"mps_{number}"] = spec
            tag_constant_data(exported_program)
            return PartitionResult(tagged_exported_program=exported_program, partition_tags=tags)

    return MPSPartitioner()


def can_delegate(node: torch.fx.Node) -> bool:
    """Whether the MPS runtime has the operator *and* computes this use of it (its serializer accepts
    more)."""
    if node.op != "call_function" or node.target.__name__ not in _visitor_classes():
        return False
    refuses = REFUSALS.get(node.target.__name__)
    return refuses is None or not refuses(node)


def _conv_beyond_2d(node: torch.fx.Node) -> bool:
    data, weight = (argument.meta["val"] for argument in node.args[:2])
    return bool(node.args[6]) or weight.ndim > 4 or data.ndim != weight.ndim


def _puts_at_several_axes_or_adds(node: torch.fx.Node) -> bool:
    adds = bool(node.args[3:] and node.args[3])
    return adds or sum(index is not None for index in node.args[1]) != 1


def _indexes_a_portable_scatter(node: torch.fx.Node) -> bool:
    """The cast of `portable.index_in_64_bits`, which is left out with its scatter or gather."""
    return node.meta["val"].dtype == torch.int64 and any(
        getattr(user.target, "__name__", "").startswith(("aten.scatter", "aten.gather"))
        for user in node.users
    )


REFUSALS = {  # serializable uses that the runtime aborts on or computes differently
    "aten.convolution.default": _conv_beyond_2d,
    "aten._to_copy.default": _indexes_a_portable_scatter,
    "aten.index.Tensor": lambda node: True,  # lower.py rewrites every form that can be rewritten
    "aten.index_put.default": _puts_at_several_axes_or_adds,
    # ceil_mode never reaches MPSGraph
    "aten.avg_pool2d.default": lambda node: len(node.args) > 4 and bool(node.args[4]),
    "aten.div.Tensor_mode": lambda node: node.kwargs.get("rounding_mode") == "trunc",
    "aten.fmod.Tensor": lambda node: node.meta["val"].dtype == torch.float16,
    "aten.arange.start_step": lambda node: True,  # never left after folding
    "aten.slice_scatter.default": lambda node: len(node.args) > 5 and node.args[5] != 1,
    "aten.max_pool2d_with_indices.default": lambda node: any(user.args[1] != 0 for user in node.users),
}


@functools.cache
def _visitor_classes() -> dict[str, type]:
    """Operator name -> the stock visitor behind our corrections."""
    # importing the package registers every visitor
    from executorch.backends.apple.mps.operators import node_visitor

    corrected = _corrections(node_visitor.NodeVisitor)
    classes = {
        name: type(stock.__name__, (corrected, stock), {})
        for name, stock in node_visitor._node_visitor_dict.items()
    }
    return classes | {
        "aten._to_copy.default": type("Cast", (corrected,), {"define_node": _define_cast}),
        "aten.split_with_sizes_copy.default": _splitting(corrected, node_visitor),
        "": corrected,
    }


def _corrections(stock: type) -> type:
    """A NodeVisitor to stand before a stock one in its method resolution order."""
    from executorch.backends.apple.mps.serialization import mps_graph_schema as schema
    from executorch.backends.apple.mps.utils.mps_utils import edge_dtype_to_mps_dtype

    class Corrected(stock):
        def __init__(self, program: Any, ids: dict, constant_ids: dict):
            super().__init__(program, False)
            self._tensor_to_id = ids
            self._constant_ids = constant_ids

        def define_tensor(self, node: Any, mps_graph: Any, mps_data_type: Any = None) -> int:
            if node is None:
                return -1
            constant = constant_of(self.exported_program, node)
            if node in self.tensor_to_id or constant is None:
                return super().define_tensor(node, mps_graph, mps_data_type)
            self.tensor_to_id[node] = self._write(constant, mps_graph, mps_data_type)
            return self.tensor_to_id[node]

        def get_serialized_buffer(self, node, mps_graph, node_id, mps_data_type=None):
            return (
                0,
                schema.Buffer(storage=b""),
                self.get_serialized_dtype(node) if mps_data_type is None else mps_data_type,
            )

        def define_constant(self, constant_tensor: torch.Tensor, mps_graph: Any) -> int:
            return self._write(constant_tensor, mps_graph, None)

        def define_scalar(self, val: Any, mps_data_type: Any, mps_graph: Any) -> int:
            raise AssertionError("agree_types of precision.py leaves no scalar operands")

        def _write(self, tensor: torch.Tensor, mps_graph: Any, mps_data_type: Any) -> int:
            """A constant, written once however many nodes hold the same bytes (tied weights)."""
            int4 = mps_data_type == schema.MPSDataType.mps_data_type_int4
            data = pack_int4(tensor) if int4 else tensor.contiguous()
            data = data.reshape(-1).clone(
                memory_format=torch.contiguous_format
            )  # one element may have stride 0
            data = data.view(torch.uint8).numpy().tobytes()
            kind = mps_data_type if int4 else edge_dtype_to_mps_dtype(tensor.dtype)
            key = (kind, tuple(tensor.shape), hashlib.sha256(data).digest())
            if key not in self._constant_ids:
                self._constant_ids[key] = len(mps_graph.mps_values)
                mps_graph.constant_ids.append(self._constant_ids[key])
                dims = list(tensor.shape) or [1]
                value = schema.MPSTensor(
                    kind,
                    len(dims),
                    dims,
                    constant_buffer_size=len(data),
                    constant_buffer=schema.Buffer(storage=data),
                )
                mps_graph.mps_values.append(value)
            return self._constant_ids[key]

    return Corrected


def _splitting(corrected: type, node_visitor: Any) -> type:
    """The stock visitor reads an axis that the edge program leaves out where it is 0."""
    stock = node_visitor._node_visitor_dict["aten.split_with_sizes_copy.default"]

    def define_node(self: Any, node: Any, mps_graph: Any) -> None:
        node.args = (*node.args, 0)[:3]
        stock.define_node(self, node, mps_graph)

    return type("Split", (corrected, stock), {"define_node": define_node})


def _define_cast(self: Any, node: Any, mps_graph: Any) -> None:
    from executorch.backends.apple.mps.serialization.mps_graph_schema import MPSCast, MPSNode

    source, result = self.define_tensor(node.args[0], mps_graph), self.define_tensor(node, mps_graph)
    mps_graph.mps_nodes.append(MPSNode(MPSCast(source, result, dtype=self.get_serialized_dtype(node))))


def constant_of(program: Any, node: torch.fx.Node) -> torch.Tensor | None:
    """The parameter, buffer or lifted constant behind a placeholder."""
    signature = program.graph_signature
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if node.op == "placeholder" and node.name in names:
            name = names[node.name]
            return program.state_dict[name] if name in program.state_dict else program.constants[name]
    return None


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """int8 [rows, cols] in -8..7, cols even -> uint8 [rows, cols/2]; the low nibble is the even column.

    This is what executorch's serializer gets from a Mac: it packs (even << 4 | odd), and torch's Metal kernel
    weight_to_int4pack (aten/src/ATen/native/mps/kernels/Quantized.metal) swaps the nibbles of every byte.
    """
    nibbles = codes.to(torch.uint8) & 0x0F
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4)


def serialize(program: Any) -> bytes:
    """A partition's edge program -> header, flatbuffer and data segment.

    Values are numbered as they are met, inputs first: the runtime takes an input's id for its position.
    """
    from executorch.backends.apple.mps.serialization.mps_graph_schema import DataSegment, MPSGraph, OpType
    from executorch.backends.apple.mps.serialization.mps_graph_serialize import convert_to_flatbuffer

    graph = MPSGraph("0", [], [], [], [], [], graph_type=OpType.mps_graph, constant_segment=DataSegment(0, 0))
    ids: dict[Any, int] = {}
    constant_ids: dict[Any, int] = {}  # (type, shape, digest of the bytes) -> id
    visitors = {name: visitor(program, ids, constant_ids) for name, visitor in _visitor_classes().items()}
    for node in program.graph.nodes:
        if node.op == "placeholder" and constant_of(program, node) is None:
            graph.input_ids.append(visitors[""].define_tensor(node, graph))
        elif node.op == "call_function":
            visitors[node.target.__name__].define_node(node, graph)
        elif node.op == "output":
            graph.output_ids += [visitors[""].define_tensor(result, graph) for result in node.args[0]]
    segment = _extract_constants(graph)
    flatbuffer = convert_to_flatbuffer(graph)
    offset = _aligned(HEADER_BYTES + len(flatbuffer))
    header = b"\0\0\0\0MP00" + offset.to_bytes(8, "little") + len(segment).to_bytes(8, "little")
    return b"".join([header, flatbuffer, b"\0" * (offset - HEADER_BYTES - len(flatbuffer)), segment])


def _extract_constants(graph: Any) -> bytes:
    """Move the constants' bytes out of the values into one aligned segment."""
    parts, offset = [], 0
    for value in graph.mps_values:
        if value.constant_buffer_size > 0:
            data = value.constant_buffer.storage
            parts += [data, b"\0" * (_aligned(len(data)) - len(data))]
            value.constant_buffer.storage = b""
            value.segment_offset = offset
            offset += _aligned(len(data))
    return b"".join(parts)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
