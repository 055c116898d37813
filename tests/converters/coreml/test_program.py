"""converters/coreml/program.py: one MIL program, filled again and again, gives the bytes that each recipe
gives by itself."""

import numpy as np
import pytest
import torch

from cidermill.converters.coreml.write import Templates, write_mlpackage
from cidermill.models.capture import capture
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation.judge.audit import audit, judge
from cidermill.validation.mil.read import read_package

RECIPES = """
    int8 palettize4 prune50+int4 palettize4:group8:int8 int5 prune50 prune50:block4+palettize4:vector2
    int8:asymmetric palettize4:scaled float16 int8:per-tensor
""".split()
OLDER = ["int8", "palettize4", "prune50", "int8:asymmetric"]


class Net(torch.nn.Module):
    """Two layers with equal weights beside one with its own, an embedding and a convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.second, self.third = (
            torch.nn.Embedding(50, 64),
            *(torch.nn.Linear(64, 64, bias=False) for _ in range(3)),
        )
        self.conv = torch.nn.Conv2d(16, 32, 3)
        self.second.weight.data.copy_(self.first.weight.data)

    def forward(self, tokens, image):
        return {
            "text": self.third(self.second(torch.relu(self.first(self.embed(tokens))))),
            "picture": self.conv(image),
        }


@pytest.fixture(scope="module")
def captured():
    arrays = {
        "tokens": np.arange(12, dtype=np.int32)[None],
        "image": np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32),
    }
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    return capture(Source("net.pt", "module", "0", Net().eval(), specs), Samples("synthetic", (arrays,), 0))


@pytest.mark.parametrize(("recipes", "target"), [(RECIPES, "iOS18"), (OLDER, "iOS16"), (RECIPES, "iOS26")])
def test_a_program_that_was_filled_before_gives_the_same_bytes(captured, recipes, target, tmp_path):
    templates = Templates(captured)
    for turn, recipe in enumerate([*recipes, *reversed(recipes)]):
        compressed = compress(captured, parse_recipe(recipe))
        alone = write_mlpackage(compressed, tmp_path / f"{turn}-alone.mlpackage", target)
        shared = write_mlpackage(compressed, tmp_path / f"{turn}-shared.mlpackage", target, templates)
        assert shared.sha256 == alone.sha256, recipe
        assert (
            judge(audit(shared.path, compressed.decisions, shared.realised, compressed.weights))[0] == "pass"
        ), recipe
    assert len(templates.held) == 1


def test_equal_weights_are_stored_once_and_part_again_where_a_recipe_parts_them(captured, tmp_path):
    templates = Templates(captured)
    counts = {}
    for recipe in ("int8", "int8; second*=palettize4", "int8; second*=float16", "int8"):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mlpackage"
        compressed = compress(captured, parse_recipe(recipe))
        artifact = write_mlpackage(compressed, path, templates=templates)
        assert judge(audit(path, compressed.decisions, artifact.realised, compressed.weights))[0] == "pass", (
            recipe
        )
        counts[recipe] = sum(
            node.op.startswith("constexpr_blockwise") for node in read_package(path).functions["main"].nodes
        )
    assert counts == {"int8": 4, "int8; second*=palettize4": 4, "int8; second*=float16": 4}


def test_no_place_is_left_in_a_file(captured, tmp_path):
    """A place holds zeros: one that stayed would be found by its data."""
    write_mlpackage(
        compress(captured, parse_recipe("int8")), tmp_path / "net.mlpackage", templates=Templates(captured)
    )
    graph = read_package(tmp_path / "net.mlpackage").functions["main"]
    stored = [
        np.asarray(constant() if callable(constant) else constant) for constant in graph.constants.values()
    ]
    assert all(array.any() for array in stored if array.dtype == np.int8 and array.size > 1000)
