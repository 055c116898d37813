import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidermill.models.errors import UserError
from cidermill.quantization.granularity import PerBlock, PerChannel, PerGroup, PerTensor
from cidermill.quantization.recipe import (
    KINDS,
    LINEAR_BITS,
    METHODS,
    MODES,
    OBSERVERS,
    PALETTE_BITS,
    Activations,
    Linear,
    Palettize,
    Prune,
    Recipe,
    add,
    parse_recipe,
)

W8 = Linear(8, PerChannel())


@pytest.mark.parametrize(
    "text, recipe, name",
    [
        ("float16", Recipe(), "float16"),
        ("float32", Recipe("float32"), "float32"),
        ("int8", Recipe(values=W8), "int8"),
        ("int8:per-channel", Recipe(values=W8), "int8"),
        ("int8:per-tensor", Recipe(values=Linear(8, PerTensor())), "int8:per-tensor"),
        ("int8:block64", Recipe(values=Linear(8, PerBlock(64))), "int8:block64"),
        ("int4", Recipe(values=Linear(4, PerBlock(32))), "int4"),
        ("int4:block32", Recipe(values=Linear(4, PerBlock(32))), "int4"),
        ("int4:block16", Recipe(values=Linear(4, PerBlock(16))), "int4:block16"),
        ("int4:per-channel", Recipe(values=Linear(4, PerChannel())), "int4:per-channel"),
        ("int2", Recipe(values=Linear(2, PerBlock(32))), "int2"),
        ("int5", Recipe(values=Linear(5, PerChannel())), "int5"),
        ("int8:minmax", Recipe(values=Linear(8, PerChannel(), "minmax")), "int8:minmax"),
        ("int8:mse", Recipe(values=W8), "int8"),
        (
            "int4:gptq:asymmetric:block64",
            Recipe(values=Linear(4, PerBlock(64), "asymmetric", "gptq")),
            "int4:block64:asymmetric:gptq",
        ),
        ("int3:awq", Recipe(values=Linear(3, PerBlock(32), method="awq")), "int3:awq"),
        ("palettize4", Recipe(values=Palettize(4)), "palettize4"),
        ("palettize6:per-tensor", Recipe(values=Palettize(6)), "palettize6"),
        ("palettize4:group16", Recipe(values=Palettize(4, PerGroup(16))), "palettize4:group16"),
        ("palettize6:vector2", Recipe(values=Palettize(6, vector=2)), "palettize6:vector2"),
        (
            "palettize4:int8:sensitive:scaled:vector4:group8",
            Recipe(values=Palettize(4, PerGroup(8), 4, True, True, 8)),
            "palettize4:group8:vector4:scaled:sensitive:int8",
        ),
        ("prune50", Recipe(prune=Prune(50)), "prune50"),
        ("prune37.5", Recipe(prune=Prune(37.5)), "prune37.5"),
        ("prune0.5%", Recipe(prune=Prune(0.5)), "prune0.5%"),
        ("prune0", Recipe(prune=Prune(0)), "prune0"),
        ("prune100", Recipe(prune=Prune(100)), "prune100"),
        ("prune50:magnitude", Recipe(prune=Prune(50)), "prune50"),
        ("prune50:global", Recipe(prune=Prune(50, "global")), "prune50:global"),
        ("prune25:channels", Recipe(prune=Prune(25, "channels")), "prune25:channels"),
        ("prune50:block4", Recipe(prune=Prune(50, "block", 4)), "prune50:block4"),
        ("prune50:sparsegpt", Recipe(prune=Prune(50, "sparsegpt")), "prune50:sparsegpt"),
        ("prune:2of4", Recipe(prune=Prune(50, "nm", 0, 2, 4)), "prune:2of4"),
        ("prune:sparsegpt:1of4", Recipe(prune=Prune(25, "sparsegpt", 0, 1, 4)), "prune:1of4:sparsegpt"),
        ("w8a8", Recipe(values=W8, activations=Activations()), "w8a8"),
        ("w8a8:mse", Recipe(values=W8, activations=Activations(8, "mse")), "w8a8:mse"),
        (
            "w8a8:average+prune50",
            Recipe(prune=Prune(50), values=W8, activations=Activations(8, "average")),
            "prune50+w8a8:average",
        ),
        ("prune50+int8", Recipe(prune=Prune(50), values=W8), "prune50+int8"),
        ("int8+prune50", Recipe(prune=Prune(50), values=W8), "prune50+int8"),
        (
            " INT4:block64 + prune50 ",
            Recipe(prune=Prune(50), values=Linear(4, PerBlock(64))),
            "prune50+int4:block64",
        ),
        (
            "palettize4:vector2+prune50:block4",
            Recipe(prune=Prune(50, "block", 4), values=Palettize(4, vector=2)),
            "prune50:block4+palettize4:vector2",
        ),
        ("float16+palettize4", Recipe(values=Palettize(4)), "palettize4"),
        (
            "int4;lm_head*=int8 ; type:embedding = palettize8;",
            Recipe(
                values=Linear(4, PerBlock(32)),
                overrides=(("lm_head*", Recipe(values=W8)), ("type:embedding", Recipe(values=Palettize(8)))),
            ),
            "int4; lm_head*=int8; type:embedding=palettize8",
        ),
        (
            "float16; Layer.0.*=prune50+INT8",
            Recipe(overrides=(("Layer.0.*", Recipe(prune=Prune(50), values=W8)),)),
            "float16; Layer.0.*=prune50+int8",
        ),
    ],
)
def test_words(text, recipe, name):
    assert parse_recipe(text) == recipe
    assert recipe.name == str(recipe) == name
    assert parse_recipe(name) == recipe


scales = st.one_of(st.just(PerTensor()), st.just(PerChannel()), st.builds(PerBlock, st.integers(8, 512)))
linears = st.builds(
    Linear, st.sampled_from(LINEAR_BITS), scales, st.sampled_from(MODES), st.sampled_from(METHODS)
)
tables = st.one_of(st.just(PerTensor()), st.builds(PerGroup, st.integers(1, 99)))
flags = st.booleans()
palettes = st.builds(
    Palettize, st.sampled_from(PALETTE_BITS), tables, st.just(1), flags, flags, st.sampled_from([8, 16])
)
vectors = st.builds(
    Palettize,
    st.sampled_from(PALETTE_BITS),
    tables,
    st.sampled_from([2, 4]),
    flags,
    flags,
    st.sampled_from([8, 16]),
)
percents = st.floats(0, 100).map(abs)
ratios = st.integers(2, 16).flatmap(lambda m: st.integers(1, m - 1).map(lambda n: (100 * n / m, n, m)))
prunes = st.one_of(
    st.builds(Prune, percents, st.sampled_from(["magnitude", "global", "channels", "sparsegpt"])),
    st.builds(Prune, percents, st.just("block"), st.integers(2, 64)),
    st.builds(
        lambda ratio, kind: Prune(ratio[0], kind, 0, *ratio[1:]), ratios, st.sampled_from(["nm", "sparsegpt"])
    ),
)
layers = st.one_of(
    st.builds(Recipe, st.just("float16"), st.none() | prunes, st.none() | linears | palettes),
    st.builds(Recipe, st.just("float16"), st.none(), vectors),
    st.builds(
        Recipe,
        st.just("float16"),
        st.none() | prunes,
        st.just(W8),
        st.builds(Activations, st.just(8), st.sampled_from(OBSERVERS)),
    ),
)
patterns = st.sampled_from([f"type:{kind}" for kind in KINDS]) | st.text("abcXYZ019._*?[]!-", min_size=1)
overridden = st.lists(st.tuples(patterns, layers), max_size=3).map(tuple)


@given(layers, overridden)
def test_every_recipe_prints_as_text_that_parses_back(layer, overrides):
    recipe = Recipe(layer.compute, layer.prune, layer.values, layer.activations, overrides)
    assert parse_recipe(recipe.name) == recipe


@pytest.mark.parametrize(
    "text, message",
    [
        ("int1", "integers of 1 bits are not possible; allowed are 2, 3, 4, 5, 6, 7, 8; did you mean int2?"),
        ("int16", "integers of 16 bits are not possible; .* did you mean int8?"),
        ("fp16", "did you mean float16?"),
        ("palletize4", "did you mean palettize4?"),
        ("w8a16", "unknown word 'w8a16'; allowed are .*did you mean w8a8?"),
        ("", "unknown word ''; allowed are"),
        ("int8+", "unknown word ''; allowed are"),
        ("float16:block8", "unknown word 'float16:block8'; allowed are"),
        (
            "prune",
            "'prune' does not say once how much to prune; allowed are pruneF .F percent. and prune:NofM",
        ),
        ("prune50:2of4", "'prune50:2of4' does not say once how much to prune"),
        ("prune:4of4", "cannot prune 4 of every 4 weights; allowed are 1 to M-1 of M"),
        (
            "prune:2of4:global",
            "'prune:2of4:global': 2of4 and global do not go together: they answer the same question",
        ),
        ("prune50:block4:global", "block4 and global do not go together"),
        ("prune50:block1", "cannot prune blocks of 1 output channels; allowed are 2 or more"),
        (
            "prune50:channel",
            (
                "unknown option 'channel'; allowed are magnitude, global, channels, sparsegpt, blockN, NofM;"
                " did you mean prune50:channels?"
            ),
        ),
        (
            "palettize5",
            "palettes of 5 bits are not possible; allowed are 1, 2, 3, 4, 6, 8; did you mean palettize6?",
        ),
        ("palettize4:vector3", "vectors of 3 weights are not possible; allowed are 1, 2, 4"),
        (
            "int4:blok32",
            (
                "recipe word 'int4:blok32': unknown option 'blok32'; allowed are per-tensor.*blockN.*did you"
                " mean int4:block32?"
            ),
        ),
        ("int4:block", "unknown option 'block'; allowed are"),
        ("int4:", "unknown option ''; allowed are"),
        (
            "int4:group16",
            (
                "unknown option 'group16'; allowed are per-tensor, per-channel, blockN, mse, minmax,"
                " asymmetric, gptq, awq"
            ),
        ),
        ("int8:per-tensor4", "unknown option 'per-tensor4'; allowed are"),
        (
            "int4:block16:per-tensor",
            (
                "recipe word 'int4:block16:per-tensor': block16 and per-tensor do not go together: they"
                " answer the same question"
            ),
        ),
        ("int4:gptq:awq", "gptq and awq do not go together"),
        ("int4:gtpq", "unknown option 'gtpq'.*did you mean int4:gptq?"),
        (
            "palettize4:per-channel",
            "unknown option 'per-channel'; allowed are per-tensor, groupN, vectorN, scaled, sensitive, int8",
        ),
        ("int4:block2", "block size 2 is too small"),
        ("w8a8:max", "unknown option 'max'; allowed are minmax, average, mse; did you mean w8a8:minmax?"),
        ("prune101", "cannot prune 101 percent of the weights; allowed are 0 to 100"),
        ("prune-5", "cannot prune -5 percent of the weights; allowed are 0 to 100"),
        (
            "prune0.5",
            (
                "prune0.5 is ambiguous: pruneF counts in percent\nWrite prune50 for a fraction of 0.5, or"
                " prune0.5% for less"
            ),
        ),
        (
            "int8+palettize4",
            (
                "recipe 'int8\\+palettize4': these do not go together: a weight is stored either as integers"
                " or as one palette"
            ),
        ),
        ("int8+int4", "these do not go together: a weight is stored either as integers"),
        (
            "w8a8+palettize4",
            "recipe 'w8a8\\+palettize4': these do not go together: a weight is stored either",
        ),
        (
            "palettize4+w8a8:mse",
            "recipe 'palettize4\\+w8a8:mse': these do not go together: a weight is stored either",
        ),
        ("prune50+prune20", "these do not go together: a weight is pruned once"),
        (
            "prune50+palettize4:vector2",
            (
                "an entry of 2 weights needs all of them pruned or none\nUse"
                " prune50:block2\\+palettize4:vector2."
            ),
        ),
        ("prune50:block2+palettize4:vector4", "an entry of 4 weights needs all of them pruned or none"),
        ("float32+int8", "these do not go together: float32 keeps every weight as it is"),
        ("float32+float16", "these do not go together: float32 keeps"),
        ("float32; a=int8", "these do not go together: float32 keeps every weight as it is"),
        (
            "int8; a=float32",
            "a layer cannot compute in float32 on its own\nLeave single layers alone with float16",
        ),
        ("int8; a", "recipe: 'a' is no override; one reads PATTERN=RECIPE"),
        ("int8; =int4", "recipe: '=int4' is no override"),
        ("int8; a=", "unknown word ''"),
        (
            "int8; type:embeding=int4",
            "unknown kind of layer 'type:embeding'; allowed are type:linear, .* did you mean type:embedding?",
        ),
    ],
)
def test_refused(text, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        parse_recipe(text)


def test_added_to():
    int8 = parse_recipe("int8")
    assert add(Recipe()).name == "float16"
    assert add(Recipe(), palettize_bits=4, prune_fraction=0.5).name == "prune50+palettize4"
    assert add(int8, prune_fraction=0.07).name == "prune7+int8"
    assert add(int8, prune_fraction=1).name == "prune100+int8"
    assert add(int8, prune_fraction=0.005).name == "prune0.5%+int8"
    assert add(parse_recipe("int8; a=int4"), prune_fraction=0.5).name == "prune50+int8; a=int4"


@pytest.mark.parametrize(
    "recipe, options, message",
    [
        ("float16", {"prune_fraction": 1.5}, "sparsity 1.5 is outside 0..1"),
        ("float16", {"prune_fraction": -0.1}, "sparsity -0.1 is outside 0..1"),
        ("float16", {"prune_fraction": math.nan}, "sparsity nan is outside 0..1"),
        (
            "float16",
            {"palettize_bits": 5},
            "palettes of 5 bits are not possible; allowed are 1, 2, 3, 4, 6, 8",
        ),
        ("int8", {"palettize_bits": 4}, r"recipe 'int8\+palettize4': these do not go together"),
        ("prune20", {"prune_fraction": 0.5}, r"recipe 'prune20\+prune50': these do not go together"),
        (
            "float32",
            {"prune_fraction": 0.5},
            r"recipe 'float32\+prune50': these do not go together: float32 keeps",
        ),
    ],
)
def test_additions_refused(recipe, options, message):
    with pytest.raises(UserError, match=message):
        add(parse_recipe(recipe), **options)


def test_fraction_is_exact():
    assert Prune(37.5).fraction == Fraction(3, 8)
    assert Prune(0.1).fraction == Fraction(1, 1000)
    assert parse_recipe("prune:1of3").prune.fraction == Fraction(1, 3)


def test_layers_and_whether_anything_is_compressed():
    assert not parse_recipe("float16; a=float16").compresses
    assert parse_recipe("float16; a=int8").compresses
    assert [layer.words for layer in parse_recipe("int4; a=int8; b=float16").layers] == [
        "int4",
        "int8",
        "float16",
    ]
