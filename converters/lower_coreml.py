"""What Core ML's frontend needs changed in a captured program: an ExportedProgram in, an equivalent one out."""
from typing import Any

import torch

from ..models.graphs import Draft, draft, finish, is_op

aten = torch.ops.aten


def lower(program: Any) -> Any:
    """A copy of the captured program that holds only what coremltools translates rightly."""
    work = draft(program)
    drop_clones(work)
    return finish(work)


def drop_clones(work: Draft) -> None:
    """A clone only fixes a memory layout, which Core ML does not have."""
    for node in list(work.graph.nodes):
        if is_op(node, aten.clone.default):
            node.replace_all_uses_with(node.args[0])
            work.graph.erase_node(node)
