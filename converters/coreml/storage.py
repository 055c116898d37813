"""How Core ML holds a compressed weight: the form that a recipe made enters, the form that its operators can
store leaves, with the reason.

Both decompress to the same values. What is avoided where it can be, although MIL can write it:
- A scale on float data (`constexpr_blockwise_shift_scale` after a float16 table): the Neural Engine of macOS
  26 refuses to load it (apple/coremltools pull request 2688). Scales per channel are multiplied into one
  table per channel instead.
- Before iOS26, scales after a table of integers: coremltools itself turns the two around there ("this issue
  was fixed in iOS26", mil/passes/defs/optimize_quantization.py, canonicalize_quantized_lut_pattern), at the
  price of a table for each scale.
"""

import math
from dataclasses import replace

import torch

from ...quantization.weight import Codes, CompressedWeight, Palette

NATIVE_BITS = (4, 8)  # widths of MIL's integers
TABLE_BITS = {2: 2, 3: 3, 5: 6, 6: 6}  # bits of a code -> of the table indices that hold it
# a weight: what tables per channel may cost more than the scales that the Neural Engine refuses
SPARE_BITS = 1.0


def storable(weight: CompressedWeight, scales_after_tables: bool) -> tuple[CompressedWeight, str]:
    """-> (the same values in a form that `weights.emit` writes, why it is not the form that came in,
    or "").

    scales_after_tables: whether the systems that will run it take scales after a table of integers (iOS26 and
    later).
    """
    values = weight.values
    if isinstance(values, Codes) and values.bits not in NATIVE_BITS:
        return min(
            _forms_of_codes(weight, values, scales_after_tables), key=lambda form: stored_bits(form[0])
        )
    if isinstance(values, Palette) and values.channel_scale is not None:
        folded = replace(weight, values=with_scales_in_tables(values))
        if stored_bits(folded) <= stored_bits(weight) + SPARE_BITS * math.prod(weight.shape):
            return (
                folded,
                "the Neural Engine takes no scales after a table: multiplied into a table for each of them",
            )
        return (
            weight,
            (
                "the Neural Engine of macOS 26 takes no scales after a table (tables for each scale would be"
                " larger): meant for CPU and GPU"
            ),
        )
    return weight, ""


def stored_bits(weight: CompressedWeight) -> int:
    """Bits of the tensors that are written for a weight; codes without an integer type of their own need
    indices and a table of codes."""
    values = weight.values
    if not isinstance(values, Codes) or values.bits in NATIVE_BITS:
        return weight.storage_bits()
    bits = TABLE_BITS[values.bits]
    widened = replace(weight, values=replace(values, bits=bits, zero_point=None))
    return (
        widened.storage_bits()
        + 8 * 2**bits
        + (0 if values.zero_point is None else 8 * values.zero_point.numel())
    )


def scheme_of(weight: CompressedWeight) -> str:
    """ "int4", "sparse palettize6": what a weight is stored as, without its granularity."""
    values = weight.values
    kind = (
        f"int{values.bits}"
        if isinstance(values, Codes)
        else f"palettize{values.bits}"
        if isinstance(values, Palette)
        else ""
    )
    return f"sparse {kind}".strip() if weight.mask is not None else kind


def _forms_of_codes(
    weight: CompressedWeight, values: Codes, scales_after_tables: bool
) -> list[tuple[CompressedWeight, str]]:
    """The next wider integer; a table of values for each scale; from iOS26 on, indices into a table of codes
    with the scales after it."""
    missing = f"Core ML has no {values.bits}-bit integers"
    wider = 4 if values.bits < 4 else 8
    forms = [(replace(weight, values=replace(values, bits=wider)), f"{missing}: stored in {wider} bits")]
    if values.bits in TABLE_BITS:
        bits = TABLE_BITS[values.bits]
        forms.append(
            (
                replace(weight, values=tabulated(values)),
                f"{missing}: stored as {bits}-bit indices into a table for each scale",
            )
        )
        if scales_after_tables:
            forms.append((weight, f"{missing}: stored as {bits}-bit indices into a table of codes"))
    return forms


def tabulated(values: Codes) -> Palette:
    """Codes [64, 128] of 5 bits with scales [64, 4] -> 6-bit indices [64, 128] into lut [64, 4, 64, 1]: every
    code's value under each scale.

    Entries that no code reaches repeat the largest, so that a table still tells how many codes there are.
    """
    bits, first = TABLE_BITS[values.bits], -(2 ** (values.bits - 1))
    codes = (torch.arange(2**bits) + first).clamp_max(-first - 1).reshape(-1, 1)
    offset = torch.zeros_like(values.scale) if values.zero_point is None else values.zero_point.float()
    lut = (codes - offset[..., None, None]) * values.scale[..., None, None]
    return Palette(bits, (values.codes.short() - first).to(torch.uint8), lut.half().float())


def with_scales_in_tables(values: Palette) -> Palette:
    """lut [4, 1, 16, 2] and channel_scale [64, 1] -> lut [32, 1, 16, 2] without scales: one table for each
    vector of channels."""
    lut, axis, vector = values.lut, values.vector_axis or 0, values.lut.shape[-1]
    scale = values.channel_scale
    counts = [count // vector if place == axis else count for place, count in enumerate(scale.shape)]
    for place, count in enumerate(counts):
        if count > lut.shape[place]:
            lut = lut.repeat_interleave(count // lut.shape[place], dim=place)
    if vector > 1:
        scale = scale.unflatten(axis, (counts[axis], vector)).movedim(axis + 1, -1).unsqueeze(-2)
    else:
        scale = scale[..., None, None]
    return replace(values, lut=(lut * scale).half().float(), channel_scale=None, table_scale=None)
