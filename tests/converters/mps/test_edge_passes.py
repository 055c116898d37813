"""The passes that are left out would have changed nothing: the same bytes with and without, and each one's
sign beside what the pass really does."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from cidermill.converters.mps import edge_passes
from cidermill.converters.mps.write import write_pte
from cidermill.models.capture import capture
from cidermill.models.in_memory import source_of
from cidermill.models.source import Samples
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from tests.converters.conftest import Function, as_array

G = torch.Generator().manual_seed(0)
IMAGE, ROWS, WHOLE = (
    torch.randn(1, 3, 8, 8, generator=G),
    torch.randn(4, 6, generator=G),
    torch.tensor([[1, 2, 3]]),
)


def norms_and_masks(x):
    scores = F.layer_norm(x @ x.T, (4,)).masked_fill(torch.ones(4, 4).triu(1).bool(), -1e9)
    return scores.softmax(-1) @ (x * 2 + 1) / 3, (x > 0).sum(0), x.argmax(-1)


MODELS = {
    "transformer": (torch.nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), ROWS[None], "int8"),
    "convolutions": (
        torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.SiLU()),
        IMAGE,
        "int8",
    ),
    "beside the delegate": (Function(lambda x: x.sort(-1)[1] * 2 + x.cumsum(-1).flip(0)), ROWS, "float16"),
    "unused random numbers": (Function(lambda x: F.rrelu(x) + 1), ROWS, "float16"),
    "norms and masks": (Function(norms_and_masks), ROWS, "float16"),
    "whole numbers": (Function(lambda k: (k // 2 + 3 * k, k / 4, k.float().mean() + k)), WHOLE, "float32"),
    "stacked by a rule": (Function(lambda x: torch.view_as_real(torch.fft.rfft(x)) + 1), ROWS, "float16"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_the_same_with_all_passes(tmp_path, monkeypatch, name):
    module, example, recipe = MODELS[name]
    source = source_of(torch.export.export(module.eval(), (example,)), None)
    arrays = {source.inputs[0].name: as_array(example)}
    compressed = compress(capture(source, Samples("synthetic", (arrays,), 0)), parse_recipe(recipe))
    seen = []
    own = edge_passes._is_decomposed
    monkeypatch.setattr(edge_passes, "_is_decomposed", lambda program: seen.append(own(program)) or seen[-1])
    lean = write_pte(compressed, tmp_path / "lean.pte")
    assert seen == [True]
    monkeypatch.setattr(edge_passes, "_is_decomposed", lambda program: False)
    monkeypatch.setattr(edge_passes, "lean_passes", nullcontext)
    monkeypatch.setattr("cidermill.converters.mps.write.delegates_by_shape", nullcontext)
    monkeypatch.setattr("cidermill.converters.mps.lower.take_apart", lambda work: False)
    assert write_pte(compressed, tmp_path / "whole.pte").sha256 == lean.sha256


UNCHANGED = ("of one type", "whole numbers", "floor of whole numbers", "scalars")
PROGRAMS = {  # of operators that some pass changes, and that none does
    "transposed": (lambda x: x.t() @ x, (ROWS,)),
    "views": (lambda x: x.view(6, 4).transpose(0, 1), (ROWS,)),
    "numbers": (lambda x: x * 2 + 1.5, (ROWS,)),
    "scalars": (lambda x: torch.where(x > 0, x, 0.5).clamp(min=0.1), (ROWS,)),
    "mixed": (lambda x, k: x + k, (ROWS, WHOLE[:, :1])),
    "half and float": (lambda x, y: x * y, (ROWS, ROWS.half())),
    "quotient of whole numbers": (lambda k: k / (k + k), (WHOLE,)),
    "floor of whole numbers": (lambda k: torch.div(k, k + k, rounding_mode="floor"), (WHOLE,)),
    "least": (lambda x, k: torch.minimum(x, k), (ROWS, WHOLE[:, :1].int())),
    "of one type": (lambda x: (x + x) * x / (x - x.exp()), (ROWS,)),
    "whole numbers": (lambda k: torch.minimum(k * k, k - k), (WHOLE,)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_pass_changes_is_seen_before(name):
    function, inputs = PROGRAMS[name]
    program = torch.export.export(Function(function), inputs)
    from executorch.exir.passes import base_pre_op_replace_passes
    from executorch.exir.passes.remove_mixed_type_operators import RemoveMixedTypeOperators

    module, changing = program.graph_module, 0
    for run in (*base_pre_op_replace_passes, RemoveMixedTypeOperators()):
        changes = edge_passes.CHANGES.get(getattr(run, "__name__", type(run).__name__))
        seen = changes and any(changes(node) for node in module.graph.nodes if node.op == "call_function")
        before, module = spelled(module), run(module).graph_module
        if changes is not None:
            assert seen or spelled(module) == before, run
            changing += spelled(module) != before
    assert bool(changing) == (name not in UNCHANGED)


def spelled(module):
    """Its operators and what they take, by their order."""
    places = {node: index for index, node in enumerate(module.graph.nodes)}
    return [
        (node.op, str(node.target), repr(torch.fx.node.map_arg((node.args, node.kwargs), places.__getitem__)))
        for node in module.graph.nodes
        if node.op in ("call_function", "output")
    ]


def test_every_pass_that_looks_first_is_one_of_executorchs():
    from executorch.exir.passes import base_pre_op_replace_passes

    names = {getattr(run, "__name__", type(run).__name__) for run in base_pre_op_replace_passes}
    assert set(edge_passes.CHANGES) <= names | {"RemoveMixedTypeOperators"}
