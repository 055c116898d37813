"""Compressed -> .pte: one MPS delegate where its runtime computes every operator, weights as codes, identical
bytes every time."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...models.digest import content_of
from ...models.errors import UnsupportedOperators
from ...models.graphs import describe, finish
from ...models.patched import lasting_imports, operators_listed_once, postponed_modules
from ...models.quiet import quiet
from ...models.remembered_overrides import remembered_overrides
from ..artifact import WrittenArtifact
from ..wide_values import wide_values
from . import delegate as mps_delegate
from .activations import activation_warnings
from .edge_passes import as_edge_program, delegates_by_shape
from .lower import lower
from .portable import refusal
from .weights import place_weights

HINT = "Replace these operators in the model, or convert it with --target coreml."


def write_pte(compressed: Any, path: Path, progress: Callable[[str], None] | None = None) -> WrittenArtifact:
    """Write a `Compressed` model as an ExecuTorch program for the MPS backend at `path`.

    Operators without an MPS form run as portable CPU kernels between delegates, and
    `WrittenArtifact.warnings` names them. Raises UnsupportedOperators with every operator that has neither.
    `progress` is told each step's name."""
    tell = progress or (lambda step: None)
    half = compressed.recipe.compute != "float32"
    find_wide = functools.partial(wide_values, compressed=compressed, dense={})
    with quiet(), operators_listed_once(), remembered_overrides(), delegates_by_shape():
        tell("lower")
        work, warnings = lower(
            compressed.captured.program,
            half,
            functools.partial(_dense, compressed.weights),
            find_wide if compressed.mixed else None,
        )
        realised = place_weights(work, compressed.weights, half)
        tell("delegate")
        edge, left_over = to_edge_program(finish(work), half, io_names(compressed))
        tell("write")
        with path.open("wb") as file:
            edge.to_executorch().write_to_file(file)
    content = content_of(path)
    if left_over:
        warnings.append(f"outside the MPS delegate, as portable CPU kernels: {'; '.join(left_over)}")
    warnings += activation_warnings(compressed)
    precision = "float16" if half else "float32"
    return WrittenArtifact(
        "executorch-mps", compressed.recipe.name, path, *content, precision, tuple(warnings), realised
    )


def _dense(weights: dict, name: str) -> torch.Tensor | None:
    return weights[name].dense() if name in weights else None


def io_names(compressed: Any) -> dict[str, list[str]]:
    """Constant methods that tell what the format has no place for: a .pte file knows inputs and outputs by
    position only."""
    captured = compressed.captured
    return {
        "cidermill_inputs": [spec.name for spec in captured.inputs],
        "cidermill_outputs": [spec.name for spec in captured.outputs],
    }


def to_edge_program(
    program: Any, half: bool, constant_methods: dict[str, list[str]]
) -> tuple[Any, list[str]]:
    """A lowered program -> (EdgeProgramManager with its delegates, descriptions of the operators left outside
    them)."""
    with lasting_imports(), postponed_modules():
        from executorch.exir import EdgeCompileConfig
        from executorch.exir.backend.backend_details import CompileSpec

    config = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
    edge = as_edge_program(program, constant_methods, config)
    outside = [
        node
        for node in edge.exported_program().graph.nodes
        if node.op == "call_function" and not mps_delegate.can_delegate(node)
    ]
    left_over = [node for node in outside if getattr(node.target, "__name__", "") != "getitem"]
    missing = [_describe(node) + reason for node in left_over if (reason := _why_not(node)) is not None]
    if missing:
        raise UnsupportedOperators("ExecuTorch's MPS target", missing, HINT)
    edge = edge.to_backend(mps_delegate.partitioner([CompileSpec("use_fp16", bytes([half]))]))
    mps_delegate.adopt(edge.exported_program().graph_module)
    return edge, [_describe(node) for node in left_over]


def _describe(node: torch.fx.Node) -> str:
    return describe(node).replace(str(node.target), node.target.__name__)


def _why_not(node: torch.fx.Node) -> str | None:
    """Why no portable kernel computes a node, as the end of its line; None where one does."""
    if not _has_portable_kernel(node):
        return ""
    reason = refusal(node)
    return reason if reason is None else f" ({reason})"


def _has_portable_kernel(node: torch.fx.Node) -> bool:
    from executorch.exir.operator.convert import to_out_variant

    try:
        out, _ = to_out_variant(node.target._op)
    except RuntimeError:  # the operator has no form that writes into given memory, so nothing can call it
        return False
    return out.name().removeprefix("aten::") in portable_kernels()


@functools.cache
def portable_kernels() -> frozenset[str]:
    """Names like "add.out" of all CPU kernels that every ExecuTorch runtime can link, from the list in its
    package."""
    import importlib.resources

    text = importlib.resources.files("executorch").joinpath("kernels/portable/functions.yaml").read_text()
    return frozenset(
        line.removeprefix("- op:").strip() for line in text.splitlines() if line.startswith("- op:")
    )
