"""The table of targets: what its records promise, and that nobody else asks for a target by its name."""

import ast
from pathlib import Path

import pytest
import torch

import cidermill
from cidermill.converters.mps.storage import layout_of
from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.samples import synthetic
from cidermill.models.source import Source, TensorSpec
from cidermill.pipeline.predict import stand_in
from cidermill.pipeline.targets import TARGETS, find_target, refuse
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation.runners import FORMATS

ROOT = Path(cidermill.__file__).parent
MODULES = sorted((ROOT / "pipeline").rglob("*.py")) + sorted((ROOT / "validation").rglob("*.py"))


def constants(node: ast.AST) -> set:
    return {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.parent.name != "targets"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_other_module_tells_targets_apart_by_name(path):
    compared = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare) and constants(node) & set(TARGETS)
    ]
    assert not compared, f"{path} compares with a target's name in lines {compared}"


def test_every_target_is_whole():
    for name, target in TARGETS.items():
        assert target.name == name and find_target(name) is target
        assert target.suffix in FORMATS, "its artifacts can be opened"
        assert target.neural_engine != ("min_ane_share" in target.refused)


def test_an_option_is_refused_where_it_holds_for_none():
    refuse("min_ane_share", ("executorch-mps", "coreml"))
    with pytest.raises(UserError, match="never runs on the Neural Engine") as error:
        refuse("min_ane_share", ("executorch-mps",))
    assert error.value.hint == "Leave it out, or add --target coreml."


RECIPES = (
    "int8 int4 int4:asymmetric int4:block24 int3 palettize2:group16 palettize4 palettize4:scaled palettize6"
    " palettize8 prune50 prune50+int8 prune75+palettize4 prune50+palettize8"
)


@pytest.mark.parametrize("recipe", RECIPES.split())
def test_what_is_foreseen_and_what_is_written_is_one_decision(recipe):
    """ExecuTorch MPS: the layout of a form with nothing in it is the layout of the weight."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.ReLU(), torch.nn.Linear(96, 31)).eval()
    spec = TensorSpec("input", (2, 48), "float32")
    captured = capture(Source("net", "module", "0", net, (spec,)), synthetic((spec,), 1))
    compressed = compress(captured, parse_recipe(recipe))
    layouts = {layer.name: layout_of(stand_in(layer, compressed.recipe), True) for layer in captured.layers}
    assert compressed.weights.keys() == layouts.keys()
    for name, weight in compressed.weights.items():
        assert layout_of(weight, True) == layouts[name]
