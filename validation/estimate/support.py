"""Why an operation cannot run on a unit: an Operation and a Device come in, a reason or "" leaves.

Limits are those of an M4 where a source measured them, and of earlier Neural Engines where one is published
(bench/data/planner_notes.md section 5 and placement.csv:
751K/Apple-Neural-Engine-Microarchitecture-Study-M6, ane-silicon-reference arXiv 2606.22283, apple/coremltools
issues).
"""

from ..records import PER_BLOCK
from .devices import Device
from .operations import BITS, Operand, Operation

MAX_RANK = 5
MATMUL_DEPTH = 32768
ENGINE_TYPES = ("float16", "bool", "int8", "uint8", "int16", "uint16", "int4", "uint4")
POOL_WIDTHS = (*range(1, 9), 32)

UNKNOWN_TO_ENGINE = frozenset(
    """
        acos asin atanh acosh asinh cosh sinh tan cumsum mod floor_div reduce_prod band_part one_hot
        sliding_windows crop_resize crop scatter scatter_along_axis scatter_nd lstm gru rnn random_bernoulli
        random_categorical random_normal random_uniform argsort non_zero range_1d non_maximum_suppression
        shape fill fill_like while_loop cond make_list list_gather list_length list_read list_scatter
        list_write classify custom_layer torch_tensor_assign nonMaximumSuppression
    """.split()
)
CPU_ONLY = frozenset(
    """
        crop_resize non_zero range_1d sliding_windows non_maximum_suppression lstm gru rnn while_loop cond
        make_list list_gather list_length list_read list_scatter list_write classify shape affine
        random_bernoulli random_categorical random_normal random_uniform nonMaximumSuppression
    """.split()
)
KNOWN_TO_ENGINE = frozenset(
    """
        abs add affine atan avg_pool batch_norm cast ceil clamped_relu clip concat conv conv_transpose
        coreml_update_state cos depth_to_space dequantize einsum elu equal erf exp exp2 expand_dims flatten2d
        floor gather gather_along_axis gather_nd gelu greater greater_equal identity instance_norm inverse
        l2_norm l2_pool layer_norm leaky_relu less less_equal linear linear_activation local_response_norm log
        logical_and logical_not logical_or logical_xor matmul max_pool maximum minimum mul not_equal pad
        pixel_shuffle pixel_unshuffle pow prelu quantize read_state real_div reduce_argmax reduce_argmin
        reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp reduce_max reduce_mean reduce_min
        reduce_sum reduce_sum_square relu relu6 resample reshape reshape_like resize resize_bilinear
        resize_nearest_neighbor reverse reverse_sequence round rsqrt scaled_dot_product_attention scaled_tanh
        select sigmoid sigmoid_hard sign silu sin slice_by_index slice_by_size softmax softplus
        softplus_parametric softsign space_to_batch batch_to_space space_to_depth split sqrt square squeeze
        stack sub tanh threshold thresholded_relu tile topk transpose upsample_bilinear
        upsample_nearest_neighbor write_state
    """.split()
)  # coreml_update_state is saved as write_state and read_state
SINCE_GENERATION = {
    "resize": 14,
    "resize_bilinear": 14,
    "resize_nearest_neighbor": 14,
    "upsample_bilinear": 14,
    "gather": 14,
    "gather_along_axis": 14,
    "gather_nd": 14,
    "resample": 14,
    "affine": 14,
    "sin": 15,
    "cos": 15,
    "reduce_argmax": 15,
}
RUNTIME_LITERALS = {
    "gather": ("indices",),
    "gather_nd": ("indices",),
    "slice_by_index": ("begin", "end"),
    "slice_by_size": ("begin",),
    "reshape": ("shape",),
    "tile": ("reps",),
    "pad": ("pad",),
}


def engine_refusal(operation: Operation, device: Device) -> str:
    """Why the Neural Engine cannot run an operation: "int32 result", "kernel 17 > 16"; "" where it can."""
    for check in (
        _refuse_operator,
        _refuse_types,
        _refuse_shapes,
        _refuse_runtime_values,
        _refuse_kernel,
        _refuse_weight,
    ):
        if reason := check(operation, device):
            return reason
    return ""


def gpu_refusal(operation: Operation) -> str:
    """Why Core ML does not run an operation on the GPU; "" where it does."""
    if operation.op in CPU_ONLY:
        return f"operator {operation.op} has no GPU form"
    if operation.op not in KNOWN_TO_ENGINE | UNKNOWN_TO_ENGINE:
        return f"operator {operation.op} is not known here"
    return ""


def _refuse_operator(operation: Operation, device: Device) -> str:
    if operation.op in UNKNOWN_TO_ENGINE:
        return f"operator {operation.op} has no Neural Engine form"
    if operation.op not in KNOWN_TO_ENGINE:
        return f"operator {operation.op} is not known here"
    since = SINCE_GENERATION.get(operation.op, 0)
    if device.generation < since:
        return f"operator {operation.op} needs a Neural Engine of A{since} or later, {device.chip} is older"
    return ""


def _refuse_types(operation: Operation, device: Device) -> str:
    """Casts from and to float32 run on the Neural Engine of an M4 and not on an M1's; A16 is assumed to be
    the first with them."""
    allowed = ENGINE_TYPES + (("float32",) if operation.op == "cast" and device.generation >= 16 else ())
    for kind, operands in (("result", operation.results), ("input", _activations(operation))):
        for operand in operands:
            if operand.value.dtype in BITS and operand.value.dtype not in allowed:
                return f"{operand.value.dtype} {kind}"
    return ""


def _refuse_shapes(operation: Operation, device: Device) -> str:
    largest = 65536 if device.generation >= 16 or device.chip.startswith("M2") else 16384
    for operand in (*operation.results, *_activations(operation)):
        if None in operand.value.shape:
            return "flexible shape"
        shape = operand.value.fixed_shape
        if len(shape) > MAX_RANK:
            return f"rank {len(shape)} > {MAX_RANK}"
        if max(shape, default=1) > largest:
            return f"dimension {max(shape)} > {largest}"
        if 0 in shape:
            return "empty tensor"
    return ""


def _refuse_runtime_values(operation: Operation, device: Device) -> str:
    for parameter in RUNTIME_LITERALS.get(operation.op, ()):
        if any(not operand.constant for operand in operation.tensors.get(parameter, ())):
            return f"{parameter} of {operation.op} known only at run time"
    return ""


def _refuse_kernel(operation: Operation, device: Device) -> str:
    if operation.op == "conv":
        return _refuse_conv(operation.shape("weight")[2:], device)
    if operation.op == "max_pool":
        kernel = operation.literal("kernel_sizes", [1])
        return "" if kernel[-1] in POOL_WIDTHS else f"pool kernel width {kernel[-1]} > 8"
    if operation.op == "matmul":
        x = operation.shape("x")
        depth = x[-2 if operation.literal("transpose_x", False) and len(x) > 1 else -1] if x else 1
        return f"matmul depth {depth} > {MATMUL_DEPTH}" if depth > MATMUL_DEPTH else ""
    return ""


def _refuse_conv(kernel: tuple[int, ...], device: Device) -> str:
    """M4: KxK up to 16, 1xK (and 1D) up to 15, Kx1 up to 31. Before A16 the widest is 13; the tallest is not
    published, 13 assumed."""
    if device.generation < 16:
        limit = 13
    elif len(kernel) == 1 or (kernel[-1] > 1 and max(kernel[:-1]) == 1):
        limit = 15
    else:
        limit = 31 if kernel[-1] == 1 else 16
    widest = max(kernel, default=1)
    return f"kernel {widest} > {limit}" if widest > limit else ""


def _refuse_weight(operation: Operation, device: Device) -> str:
    """Block-wise scales are left to CPU and GPU (apple/coremltools #2510; stablehlo-coreml PR #110)."""
    return PER_BLOCK if any(operand.per_block for operand in operation.operands) else ""


def _activations(operation: Operation) -> tuple[Operand, ...]:
    return tuple(operand for operand in operation.operands if not operand.constant)
