"""8-bit activations on ExecuTorch's MPS target: there are none, and the user is told.

executorch 1.4.1, backends/apple/mps/operators/op_quant_dequant.py: the delegate's nodes know
dequantize_per_channel_group (of weights) only, and the visitors of quantize_per_token and
dequantize_per_token leave both out ("Skip activation dynamic quantization for now").
"""

from typing import Any


def activation_warnings(compressed: Any) -> list[str]:
    """What the recipe asked of the activations and this target does not do: a warning, or nothing."""
    if compressed.activations is None:
        return []
    compute = compressed.recipe.compute
    return [
        f"activations stay in {compute}: the MPS delegate has no kernels that quantize them; the weights are"
        " int8 as asked\nConvert with --target coreml for 8-bit activations."
    ]
