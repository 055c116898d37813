"""How the MPS delegate holds a compressed weight: its form enters, the tensors' widths, all their bits and
what differs from the recipe leave.

Only shapes are asked for, so that `sizes` foresees by the same decision that `weights` writes by. The
delegate has int8 constants, an int4 node of its own for codes with scales per row or block, and embeddings,
which look indices up in tables; it has nothing sparse.
"""

import math
from dataclasses import dataclass

from ...quantization.weight import Codes, CompressedWeight, Palette

SPARSE = "the MPS delegate has no sparse weights"
NO_SAVING = "; the recipe saves no bytes on this target"
INT4, INT8, INDICES, DENSE = "int4", "int8", "indices", "dense"


@dataclass(frozen=True)
class Layout:
    """kind: INT4 | INT8 | INDICES | DENSE; scheme: the same in words; width: bits of a code, an index or a
    dense value; bits: of all tensors of the weight; reason: why that is not what was asked for, or ""."""

    kind: str
    scheme: str
    width: int
    bits: int
    reason: str = ""


@dataclass(frozen=True)
class Rows:
    """Codes as a matrix whose rows have scales of their own, `groups` in each; transposed: of the weight."""

    rows: int
    columns: int
    groups: int
    transposed: bool = False


def layout_of(weight: CompressedWeight, half: bool) -> Layout:
    """half: whether the delegate computes in float16 (else in float32)."""
    if isinstance(weight.values, Codes):
        return _layout_of_codes(weight, weight.values, half)
    if isinstance(weight.values, Palette):
        return _layout_of_palette(weight, weight.values, half)
    return dense_layout(weight, half, SPARSE + NO_SAVING)


def dense_layout(weight: CompressedWeight, half: bool, reason: str) -> Layout:
    width = _float_bits(half)
    return Layout(DENSE, f"float{width} (dense)", width, width * math.prod(weight.shape), reason)


def _layout_of_codes(weight: CompressedWeight, values: Codes, half: bool) -> Layout:
    count, obstacle = math.prod(weight.shape), why_not_int4(weight, half)
    zeros = f"{SPARSE}: pruned weights are stored as zeros" if weight.mask is not None else ""
    if not obstacle:
        wider = f"the MPS delegate stores {values.bits}-bit codes in 4 bits" if values.bits < 4 else ""
        return Layout(INT4, "int4", 4, 4 * count + 16 * values.scale.numel(), _joined(wider, zeros))
    scales = values.scale.numel() * (1 if values.zero_point is None else 2)
    scheme = "int8" if values.bits == 8 else "int8-storage"
    reason = zeros if values.bits == 8 else _joined(obstacle, zeros)
    return Layout(INT8, scheme, 8, 8 * count + _float_bits(half) * scales, reason)


def why_not_int4(weight: CompressedWeight, half: bool) -> str:
    """ "" where the delegate's own int4 node can hold the codes: rows of an even length, scales along one
    axis, no zero points."""
    values = weight.values
    if values.bits > 4:
        return f"the MPS delegate stores {values.bits}-bit codes in 8 bits"
    if not half:
        return "the MPS delegate's int4 node gives float16 only"
    if values.zero_point is not None:
        return "the MPS delegate's int4 node takes no zero points"
    matrix = rows_of(values)
    if matrix is None:
        return "the MPS delegate's int4 node needs scales per row, or in blocks along one axis"
    block = matrix.columns // matrix.groups
    if matrix.columns % 2 or block % 2:
        return (
            f"the MPS delegate's int4 node needs rows and blocks of an even length, not {matrix.columns} in"
            f" blocks of {block}"
        )
    return ""


def rows_of(values: Codes) -> Rows | None:
    """The codes as a matrix for the int4 node, None where their scales run along several axes."""
    shape, blocks = tuple(values.codes.shape), tuple(values.scale.shape)
    if len(shape) == 2 and blocks[0] != shape[0] and blocks[1] == shape[1]:
        return Rows(shape[1], shape[0], blocks[0], transposed=True)
    if blocks[0] != shape[0] or len(shape) < 2 or any(size != 1 for size in blocks[2:]):
        return None
    return Rows(shape[0], math.prod(shape[1:]), blocks[1])


def _layout_of_palette(weight: CompressedWeight, values: Palette, half: bool) -> Layout:
    """Indices, all tables one after the other as the rows of an embedding, the first row of each where there
    are several, scales. Pruned weights need an entry of zeros in each table."""
    count, pruned = math.prod(weight.shape), weight.mask is not None
    tables, (entries, vector) = values.lut.shape[:-2].numel(), values.lut.shape[-2:]
    if pruned and entries == 256:
        full = f"{SPARSE}, and the table has no entry left for zero"
        return dense_layout(weight, half, full + NO_SAVING)
    rows, indices = tables * (entries + pruned), values.indices
    packed = half and rows <= 16 and indices.shape[1:].numel() % 2 == 0
    units = len(indices) if packed else 0  # the int4 node, which unpacks them, needs a scale for each row
    scales = 0 if values.channel_scale is None else values.channel_scale.numel()
    width = 4 if packed else 8
    bits = width * indices.numel() + _float_bits(half) * (rows * vector + units + scales)
    bits += 32 * tables if tables > 1 else 0
    if bits >= _float_bits(half) * count:
        return dense_layout(
            weight, half, f"indices and tables would take {bits / count:.3g} bits per weight" + NO_SAVING
        )
    wider = f"the MPS delegate stores {values.bits}-bit indices in {width} bits"
    reason = _joined(
        "" if values.bits == width else wider,
        "the MPS delegate's int4 node, which unpacks the indices, needs a scale for each row"
        if packed
        else "",
        f"{SPARSE}: pruned weights have an entry of the table" if pruned else "",
    )
    return Layout(INDICES, f"palettize{values.bits}", width, bits, reason)


def _float_bits(half: bool) -> int:
    return 16 if half else 32


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))
