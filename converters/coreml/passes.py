"""coremltools' passes over a MIL program: which of them run, and which have nothing to look for.

A pass takes 4 to 50 ms to find nothing in a graph of 500 operations, and most of coremltools' 106 find
nothing in most graphs. Every pass of `WORKS_ON` leaves a program alone that has no operation of its types, as
its source (coremltools 9.0) shows; tests/converters/coreml/test_passes.py holds that the bytes are the same.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ...models.patched import replaced

BACKEND = "backend_mlprogram"  # coremltools' name for the passes that it runs before a program is written
TO_16_BITS = "common::add_int16_cast"
COMPRESSED = "constexpr_"  # how the types of operations begin that hold compressed weights
CONVOLUTIONS = ("conv", "conv_transpose")
WORKS_ON = {  # pass -> types of operations, without any of which it changes nothing
    "torch::torch_tensor_assign_to_core": ("torch_tensor_assign",),
    "torch::torch_upsample_to_core_upsample": ("torch_upsample_nearest_neighbor", "torch_upsample_bilinear"),
    "common::nullify_redundant_quantization_zero_point": ("quantize", "dequantize"),
    "common::dequantize_quantize_pair_elimination": ("dequantize",),
    "common::distributive_quantized_binary_op_scale_normalization": ("dequantize",),
    "common::dequantize_to_constexpr": ("dequantize",),
    "common::divide_to_multiply": ("real_div",),
    "common::select_optimization": ("select",),
    "common::add_conv_transpose_output_shape": ("conv_transpose",),
    "common::loop_invariant_elimination": ("while_loop",),
    "common::fuse_matmul_weight_bias": ("matmul",),
    "common::fuse_linear_bias": ("linear",),
    "common::fuse_gelu_tanh_approximation": ("tanh",),
    "common::fuse_gelu_exact": ("erf",),
    "common::fuse_leaky_relu": ("maximum",),
    "common::rank0_expand_dims_swap": ("expand_dims",),
    "common::fuse_squeeze_expand_dims": ("squeeze",),
    "common::compose_conv1d": ("expand_dims",),
    "common::use_reflection_padding": ("concat",),
    "common::merge_consecutive_paddings": ("pad",),
    "common::fuse_pad_conv": ("pad",),
    "common::replace_stack_reshape": ("stack",),
    "common::fuse_dilated_conv": ("space_to_batch",),
    "common::fuse_conv_scale": CONVOLUTIONS,
    "common::fuse_conv_bias": CONVOLUTIONS,
    "common::fuse_conv_batchnorm": CONVOLUTIONS,
    "common::fuse_onehot_matmul_to_gather": ("one_hot",),
    "common::fuse_layernorm_or_instancenorm": ("reduce_mean", "reduce_sum"),
    "common::fuse_reduce_mean": ("reduce_sum",),
    "common::detect_concat_interleave": ("concat",),
    "common::concat_to_pixel_shuffle": ("concat",),
    "common::fuse_prelu": ("relu",),
    "common::prelu_to_lrelu": ("prelu",),
    "common::merge_consecutive_relus": ("relu",),
    "common::reduce_transposes": ("transpose",),
    "common::fuse_transpose_matmul": ("matmul",),
    "common::fuse_stack_split": ("stack",),
    "common::guard_negative_gather_indices": ("gather", "gather_nd"),
    "common::canonicalize_inplace_pattern": ("coreml_update_state",),
    "common::prefer_state_in_downstream": ("coreml_update_state",),
    "common::merge_affine_dequantize_with_consecutive_ops": ("constexpr_affine_dequantize",),
    "common::expand_dynamic_linear": ("linear",),
    "mil_backend::fuse_activation_silu": ("sigmoid",),
    "mil_backend::fuse_pow2_sqrt": ("sqrt",),
}


# how the names of passes begin that make a program shorter or quicker and nothing else
OPTIMIZING = ("common::fuse_", "common::merge_", "common::reduce_")


class BrokenPass(Exception):
    """A pass that optimizes failed over a program, which it left in pieces. Converted anew without it, the
    program computes the same."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


def pass_pipeline(left_out: Iterable[str] = ()) -> Any:
    """coremltools' passes (a PassPipeline), those before writing included, without those that are `left_out`
    and the one that turns tables and scales around: it repeats a table for every scale, and drops vector
    axes."""
    import coremltools as ct

    pipeline = ct.PassPipeline.DEFAULT
    for name in ct.PassPipeline._PIPELINE_NAME_TO_PASSES[BACKEND]:
        pipeline.append_pass(name)
    pipeline.remove_passes({"common::canonicalize_quantized_lut_pattern", *left_out})
    return pipeline


@contextmanager
def lean_passes() -> Iterator[None]:
    """coremltools leaves passes out that have nothing to look for, and validates a program once at the end.

    Its own `apply_pipeline` (9.0) validates after each pass, which takes half as long as the passes. What a
    pass breaks is found all the same. Whenever a pass leaves a block, coremltools also looks up for each
    variable which compressed weights it is computed from.
    """
    from coremltools.converters.mil.mil import Block
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    with (
        replaced(PassPipelineManager, "apply_pipeline", staticmethod(_apply_pipeline)),
        replaced(Block, "_propagate_nonreplaceable_vars", _find_compressed),
    ):
        yield


def _find_compressed(block: Any) -> None:
    """In place of `Block._propagate_nonreplaceable_vars`: no inputs are looked through before the first
    compressed weight."""
    some = block.outer_op is not None  # what is outside may be compressed
    for operation in block.operations:
        some = some or bool(operation.blocks) or operation.op_type.startswith(COMPRESSED)
        for inner in operation.blocks:
            _find_compressed(inner)
        for variable in operation.outputs or ():
            variable._reset_nonreplaceable_vars_upstream()
            if some:
                variable._set_nonreplaceable_vars_upstream()


def _apply_pipeline(program: Any, pipeline: Any) -> None:
    """Change a program in place by the passes of a PassPipeline; raises BrokenPass where one that optimizes
    fails, and what another or the validation raises."""
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    pipeline.validate()
    types: set[str] = set()  # empty: to be read again
    for name in pipeline.passes:
        if name in WORKS_ON:
            types = types or _operation_types(program)
            if types.isdisjoint(WORKS_ON[name]):
                continue
        graph_pass = PASS_REGISTRY[name]
        graph_pass.set_options(pipeline.get_options(name))
        try:
            with (
                replaced(graph_pass, "op_selector", _keeps_integers) if name == TO_16_BITS else nullcontext()
            ):
                graph_pass(program)
        except Exception as error:
            if name.startswith(OPTIMIZING):
                raise BrokenPass(name) from error
            error.add_note(f"in coremltools' pass {name}")
            raise
        types = set()
    program.validate(check_essential_scope=True)


def _keeps_integers(operation: Any) -> bool:
    """Whether 16 bits hold all integers that an operation reads, for the pass that casts them: it looks at
    constants, and at indices, but not at the numbers that are gathered, squeezed or sorted."""
    data = operation.inputs.get("x")
    return data is None or data.val is not None or not data.is_tensor_or_scalar_of(dtype="int32")


def _operation_types(program: Any) -> set[str]:
    """Of all operations of a program, those of nested blocks included."""
    types: set[str] = set()
    blocks = list(program.functions.values())
    while blocks:
        for operation in blocks.pop().operations:
            types.add(operation.op_type)
            blocks.extend(operation.blocks)
    return types
