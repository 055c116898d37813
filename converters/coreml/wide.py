"""Operators that stay in float32 in a half-precision Core ML program: a lowered program, and those of its
nodes whose results half precision does not hold, in; coremltools' choice of types out."""

from __future__ import annotations

from typing import Any

import torch

from ..wide_values import reads
from .tools import import_coremltools

HANDLE = "debug_handle"  # of a node; coremltools carries it on to every operation that it makes of the node


def keep_in_float32(program: Any, wide: set[torch.fx.Node]) -> tuple[Any, int]:
    """Mark the nodes with wide results, and those that read them. -> (the precision for `ct.convert`: float16
    but for what comes of these nodes, how many they are)"""
    ct = import_coremltools()
    from coremltools.converters.mil.mil.scope import ScopeSource

    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    for node in nodes:
        node.meta.pop(HANDLE, None)
    kept = [node for node in nodes if node in wide or reads(node, wide)]
    for number, node in enumerate(kept):
        node.meta[HANDLE] = number

    def in_half(operation: Any) -> bool:
        return operation.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE, [None]) == [None]

    return ct.transform.FP16ComputePrecision(op_selector=in_half), len(kept)
