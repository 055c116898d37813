"""How large an ExecuTorch MPS program will be: the form of a weight, or a captured graph, enters; bytes of
the file that `write` makes leave, from shapes alone."""

from typing import Any

from ...quantization.weight import Codes, CompressedWeight
from .storage import DENSE, INDICES, INT4, INT8, Layout, layout_of

# Bytes of the graph, fitted to small architectures of the zoo and two small convolutional networks on
# 2026-11-21, where it leaves at most 3 % of the artifact at 4 bits, of programs below 50 kB up to 3 kB; in
# models of megabytes the graph hardly counts. Fixed, for each operation and tensor.
GRAPH = (1900, 162, 100)

# Bytes of the graph beside each compressed weight's own bits, fitted to fourteen recipes on a small BERT and
# a small convolutional network on 2026-11-21.
FORM = {INT8: 235, INT4: 280, INDICES: 670, "zero points": 150, "more tables": 200, "channel scales": 160}


def footprint(form: CompressedWeight) -> tuple[int, float]:
    """-> (bits of the tensors that hold a weight of this form, bytes of the operators that decompress it)."""
    layout = layout_of(form, half=True)  # compressed weights compute in float16
    return layout.bits, _form_bytes(form, layout)


def _form_bytes(form: CompressedWeight, layout: Layout) -> float:
    if layout.kind == DENSE:
        return 0.0
    if isinstance(form.values, Codes):
        return FORM[layout.kind] + FORM["zero points"] * (form.values.zero_point is not None)
    several_tables = form.values.lut.shape[:-2].numel() > 1
    scaled = form.values.channel_scale is not None
    return FORM[layout.kind] + FORM["more tables"] * several_tables + FORM["channel scales"] * scaled


def graph_bytes(captured: Any) -> int:
    """Of the graph, its names, metadata and padding."""
    fixed, operation, tensor = GRAPH
    operations = sum(node.op == "call_function" for node in captured.program.graph.nodes)
    return round(fixed + operation * operations + tensor * len(captured.tensors))
