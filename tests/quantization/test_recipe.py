import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidermill.models.errors import UserError
from cidermill.quantization.granularity import PerBlock, PerChannel, PerGroup, PerTensor
from cidermill.quantization.recipe import PALETTE_BITS, Linear, Palettize, Prune, Recipe, add, parse_recipe, required_target


@pytest.mark.parametrize("text, recipe, name", [
    ("float16", Recipe(), "float16"),
    ("float32", Recipe("float32"), "float32"),
    ("int8", Recipe(values=Linear(8, PerChannel())), "int8"),
    ("int8:per-channel", Recipe(values=Linear(8, PerChannel())), "int8"),
    ("int8:per-tensor", Recipe(values=Linear(8, PerTensor())), "int8:per-tensor"),
    ("int8:block64", Recipe(values=Linear(8, PerBlock(64))), "int8:block64"),
    ("int4", Recipe(values=Linear(4, PerBlock(32))), "int4"),
    ("int4:block32", Recipe(values=Linear(4, PerBlock(32))), "int4"),
    ("int4:block16", Recipe(values=Linear(4, PerBlock(16))), "int4:block16"),
    ("int4:per-channel", Recipe(values=Linear(4, PerChannel())), "int4:per-channel"),
    ("palettize4", Recipe(values=Palettize(4)), "palettize4"),
    ("palettize6:per-tensor", Recipe(values=Palettize(6)), "palettize6"),
    ("palettize4:group16", Recipe(values=Palettize(4, PerGroup(16))), "palettize4:group16"),
    ("prune50", Recipe(prune=Prune(50)), "prune50"),
    ("prune37.5", Recipe(prune=Prune(37.5)), "prune37.5"),
    ("prune0.5%", Recipe(prune=Prune(0.5)), "prune0.5%"),
    ("prune0", Recipe(prune=Prune(0)), "prune0"),
    ("prune100", Recipe(prune=Prune(100)), "prune100"),
    ("prune50+int8", Recipe(prune=Prune(50), values=Linear(8, PerChannel())), "prune50+int8"),
    (" INT4:block64 + prune50 ", Recipe(prune=Prune(50), values=Linear(4, PerBlock(64))), "prune50+int4:block64"),
    ("float16+palettize4", Recipe(values=Palettize(4)), "palettize4"),
])
def test_words(text, recipe, name):
    assert parse_recipe(text) == recipe
    assert recipe.name == str(recipe) == name
    assert parse_recipe(name) == recipe


scales = st.one_of(st.just(PerTensor()), st.just(PerChannel()), st.builds(PerBlock, st.integers(8, 512)))
linears = st.builds(Linear, st.sampled_from([4, 8]), scales)
palettes = st.builds(Palettize, st.sampled_from(PALETTE_BITS), st.one_of(st.just(PerTensor()), st.builds(PerGroup, st.integers(1, 99))))
prunes = st.builds(Prune, st.floats(0, 100).map(abs))


@given(st.builds(Recipe, st.just("float16"), st.none() | prunes, st.none() | linears | palettes))
def test_every_recipe_prints_as_text_that_parses_back(recipe):
    assert parse_recipe(recipe.name) == recipe


@pytest.mark.parametrize("text, message", [
    ("int3", "recipe 'int3': unknown word 'int3'; allowed are float32, float16, int8, int4, palettizeN"),
    ("int9", "did you mean int"),
    ("fp16", "did you mean float16?"),
    ("palletize4", "did you mean palettize4?"),
    ("", "unknown word ''; allowed are"),
    ("int8+", "unknown word ''; allowed are"),
    ("float16:block8", "unknown word 'float16:block8'; allowed are"),
    ("prune", "unknown word 'prune'.*did you mean prune50?"),
    ("palettize5", "palettes of 5 bits are not possible; allowed are 1, 2, 3, 4, 6, 8; did you mean palettize6?"),
    ("int4:blok32", "recipe word 'int4:blok32': unknown option 'blok32'; allowed are per-tensor.*blockN .*did you mean int4:block32?"),
    ("int4:block", "unknown option 'block'; allowed are"),
    ("int4:", "unknown option ''; allowed are"),
    ("int4:group16", "unknown option 'group16'; allowed are per-tensor, per-channel or blockN"),
    ("int8:per-tensor4", "unknown option 'per-tensor4'; allowed are"),
    ("palettize4:per-channel", "unknown option 'per-channel'; allowed are per-tensor or groupN"),
    ("int4:block2", "block size 2 is too small"),
    ("prune101", "cannot prune 101 percent of the weights; allowed are 0 to 100"),
    ("prune-5", "cannot prune -5 percent of the weights; allowed are 0 to 100"),
    ("prune0.5", "prune0.5 is ambiguous: pruneF counts in percent\nWrite prune50 for a fraction of 0.5, or prune0.5% for less"),
    ("int8+palettize4", "recipe 'int8\\+palettize4': these do not go together: a weight is stored either as integers or as one palette"),
    ("int8+int4", "these do not go together: a weight is stored either as integers"),
    ("prune50+prune20", "these do not go together: a weight is pruned once"),
    ("float32+int8", "these do not go together: float32 keeps every weight as it is"),
    ("float32+float16", "these do not go together: float32 keeps"),
    ("w8a8", "recipe 'w8a8': 'w8a8' is not yet supported; supported are float32, float16"),
    ("prune:2of4", "'prune:2of4' is not yet supported; supported are"),
    ("palettize6:vector2", "'palettize6:vector2' is not yet supported; supported are"),
])
def test_refused(text, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?").replace(".*did", ".*did")):
        parse_recipe(text)


def test_added_to():
    int8 = parse_recipe("int8")
    assert add(Recipe()).name == "float16"
    assert add(Recipe(), palettize_bits=4, prune_fraction=0.5).name == "prune50+palettize4"
    assert add(int8, prune_fraction=0.07).name == "prune7+int8"
    assert add(int8, prune_fraction=1).name == "prune100+int8"
    assert add(int8, prune_fraction=0.005).name == "prune0.5%+int8"


@pytest.mark.parametrize("recipe, options, message", [
    ("float16", {"prune_fraction": 1.5}, "sparsity 1.5 is outside 0..1"),
    ("float16", {"prune_fraction": -0.1}, "sparsity -0.1 is outside 0..1"),
    ("float16", {"prune_fraction": math.nan}, "sparsity nan is outside 0..1"),
    ("float16", {"palettize_bits": 5}, "--palettize 5: palettes of 5 bits are not possible; allowed are 1, 2, 3, 4, 6, 8"),
    ("int8", {"palettize_bits": 4}, r"recipe 'int8\+palettize4': these do not go together"),
    ("prune20", {"prune_fraction": 0.5}, r"recipe 'prune20\+prune50': these do not go together"),
    ("float32", {"prune_fraction": 0.5}, r"recipe 'float32\+prune50': these do not go together: float32 keeps"),
])
def test_additions_refused(recipe, options, message):
    with pytest.raises(UserError, match=message):
        add(parse_recipe(recipe), **options)


def test_fraction_is_exact():
    assert Prune(37.5).fraction == Fraction(3, 8)
    assert Prune(0.1).fraction == Fraction(1, 1000)


@pytest.mark.parametrize("text, target", [
    ("float32", "iOS15"), ("float16", "iOS15"), ("int8", "iOS16"), ("int8:per-tensor", "iOS16"), ("prune50", "iOS16"),
    ("palettize4", "iOS16"), ("palettize1", "iOS16"), ("palettize8", "iOS16"), ("palettize3", "iOS18"), ("palettize4:group16", "iOS18"),
    ("int8:block32", "iOS18"), ("int4", "iOS18"), ("int4:per-channel", "iOS18"), ("prune50+int8", "iOS18"), ("prune50+palettize4", "iOS18"),
])  # fmt: skip
def test_required_target(text, target):
    found, reason = required_target(parse_recipe(text))
    assert found == target
    assert reason
