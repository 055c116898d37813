"""Packages and programs are written here by the bare tools and by hand, so that the audit is judged by files
that it did not make."""

import math
import shutil
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
import torch

from cidermill.converters.artifact import Realised
from cidermill.models.digest import content_of
from cidermill.models.errors import UnreadableArtifact
from cidermill.validation.graph import Graph, Node, Ref, Value
from cidermill.validation.judge.audit import NOT_STORED, audit, judge, match_names, match_shapes
from cidermill.validation.judge.stored import Part, StoredWeight, _plain, bits_of, stored_weights


@dataclass(frozen=True)
class Decided:
    name: str
    shape: tuple[int, ...]
    requested: str = "int8"
    realised: str = "int8"
    bits_per_weight: float = 8.25
    reason: str = ""


SHAPE = (64, 128)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """build -> path of a package with one matrix product whose weight is what `build(mb)` returns. Cached by
    name."""
    folder = tmp_path_factory.mktemp("packages")

    def write(name, build):
        path = folder / f"{name}.mlpackage"
        if not path.exists():
            _save(path, build)
        return path

    return write


def _save(path, build):
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, SHAPE[1]))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.matmul(x=mb.cast(x=x, dtype="fp16"), y=build(mb), transpose_y=True, name="y")

    options = dict(
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    ct.convert(program, pass_pipeline=ct.PassPipeline.EMPTY, **options).save(str(path))


def _bits(array, kind):
    from coremltools.converters.mil.mil import types

    return array.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(-7, 8, SHAPE)
MASK = RANDOM.random(SHAPE) < 0.25
KEPT = int(MASK.sum())
HALF = np.float16


def quantized(kind, scale_shape):
    return lambda mb: mb.constexpr_blockwise_shift_scale(
        data=_bits(CODES, kind), scale=np.full(scale_shape, 0.5, HALF), name="fc_weight_cast_fp16"
    )


def palettized(groups):
    lut = RANDOM.random((*groups, 16, 1)).astype(HALF)
    return lambda mb: mb.constexpr_lut_to_dense(
        indices=_bits(CODES & 15, "uint4"), lut=lut, name="fc_weight_palettized"
    )


def sparse(mb):
    return mb.constexpr_sparse_to_dense(
        nonzero_data=np.ones(KEPT, HALF), mask=_bits(MASK, "uint1"), name="fc_weight"
    )


def sparse_int8(mb):
    mask, data = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=_bits(MASK, "uint1"),
        nonzero_data=CODES[MASK].astype(np.int8),
        scale=np.full((64, 1), 0.5, HALF),
        name="fc_weight_q",
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask, name="fc_weight")


def sparse_palettized(mb):
    mask, data = mb.constexpr_lut_to_sparse(
        indices_mask=_bits(MASK, "uint1"),
        indices_nonzero_data=_bits(CODES[MASK] & 15, "uint4"),
        lut=np.ones((1, 1, 16, 1), HALF),
        name="fc_weight_p",
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask, name="fc_weight")


def dense(mb):
    return mb.const(val=CODES.astype(HALF), name="fc_weight_to_fp16")


SIZE = math.prod(SHAPE)
CASES = {
    "float16": (dense, "float16", {"weights": 2 * SIZE}),
    "int8": (quantized("int8", (64, 1)), "int8 per channel", {"weights": SIZE, "scales": 128}),
    "int8-block64": (quantized("int8", (64, 2)), "int8 block 64", {"weights": SIZE, "scales": 256}),
    "int4-block32": (quantized("int4", (64, 4)), "int4 block 32", {"weights": SIZE // 2, "scales": 512}),
    "palettize4": (palettized((1, 1)), "palettize4", {"weights": SIZE // 2, "tables": 32}),
    "palettize4-group16": (palettized((4, 1)), "palettize4 group 16", {"weights": SIZE // 2, "tables": 128}),
    "sparse": (sparse, "sparse 75 %", {"weights": 2 * KEPT, "masks": SIZE // 8}),
    "sparse-int8": (
        sparse_int8,
        "sparse 75 % int8 per channel",
        {"weights": KEPT, "masks": SIZE // 8, "scales": 128},
    ),
    "sparse-palettize4": (
        sparse_palettized,
        "sparse 75 % palettize4",
        {"weights": -(-KEPT // 2), "masks": SIZE // 8, "tables": 32},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_core_ml_storage(package, case):
    build, scheme, stored = CASES[case]
    path = package(case, build)
    section = audit(path, [Decided("fc.weight", SHAPE, bits_per_weight=20)])
    (entry,) = [entry for entry in section.weights if entry.name == "fc.weight"]
    sizes = section.bytes
    assert list(msgspec.to_builtins(entry)) == [
        "name",
        "requested",
        "realised",
        "bits_per_weight",
        "reason",
        "snr_db",
        "decoded",
        "stored_as",
    ]
    assert (entry.requested, entry.realised, entry.reason) == ("int8", scheme, "")
    assert entry.bits_per_weight == pytest.approx(8 * sum(stored.values()) / SIZE, abs=0.001)
    assert {kind: sizes.get(kind) for kind in stored} == stored
    assert sum(sizes.values()) == content_of(path).size_bytes and min(sizes.values()) >= 0
    assert sizes["padding"] < 2000 and sizes["graph"] > 500 and sizes["metadata"] > 100


def test_a_weight_that_was_silently_left_dense_is_reported_from_the_file(package):
    path = package("float16", dense)
    section = audit(path, [Decided("fc.weight", SHAPE)])
    (entry,) = section.weights
    assert entry.realised == "float16" and entry.bits_per_weight == 16
    assert entry.reason == "8.25 bits per weight were decided, the file holds more"
    assert judge(section) == ("pass", []), "nothing says yet that it is the right weight"
    checked = replace(section, weights=(replace(entry, decoded="equal"),))
    verdict, (warning,) = judge(checked)
    assert verdict == "pass" and "holds fc.weight in more bits than the recipe promises" in warning
    stored = Realised("float16", 16.0, "the target has no int8")
    known = audit(path, [Decided("fc.weight", SHAPE)], {"fc.weight": stored})
    assert known.weights[0].reason == "the target has no int8" and judge(known) == ("pass", [])


def test_what_only_one_side_knows_is_reported(package):
    path = package("int8", CASES["int8"][0])
    missing, extra = audit(path, [Decided("head.weight", (2, 3), reason="small")]).weights
    assert missing.realised == NOT_STORED and missing.bits_per_weight is None
    assert missing.reason == "small; written into the graph, or folded into another constant"
    assert (
        extra.name == "fc_weight_cast_fp16"
        and extra.requested == ""
        and "no weight of the source" in extra.reason
    )


def test_an_artifact_of_unknown_origin(package):
    (entry,) = audit(package("int8", CASES["int8"][0]), ()).weights
    assert (entry.requested, entry.realised, entry.reason) == ("", "int8 per channel", "")


def weight(name, shape=(4, 8), scheme="float16", dtype="float16"):
    return StoredWeight(name, shape, scheme, (Part(name, "weights", dtype, shape),))


@pytest.mark.parametrize(
    ("stored", "source"),
    [
        ("encoder_0_weight", "encoder.0.weight"),
        ("p_encoder_0_weight", "encoder.0.weight"),
        ("encoder_0_weight_to_fp16", "encoder.0.weight"),
        ("encoder_0_weight_cast_fp16", "encoder.0.weight"),
        ("encoder_0_weight_0_quantized", "encoder.0.weight"),
        ("layernorm_weight", "LayerNorm.weight"),
    ],
)
def test_names_of_converters(stored, source):
    assert match_names([Decided(source, (4, 8))], [weight(stored)])[source].name == stored


def test_names_do_not_match_by_chance():
    assert not match_names(
        [Decided("fc.weight", (4, 9)), Decided("fc2.weight", (4, 8))], [weight("fc_weight")]
    )


def test_a_tied_weight_is_where_its_twin_is():
    decisions = [
        Decided("embed.weight", (4, 8)),
        Decided("head.weight", (4, 8), reason="tied to embed.weight"),
    ]
    for match in (match_names, match_shapes):
        found = match(decisions, [weight("embed_weight")])
        assert found["head.weight"] is found["embed.weight"]


def test_without_names_the_nearest_of_the_same_shape_is_taken_once():
    stored = [weight("c0", dtype="float16"), weight("c1", dtype="int8"), weight("c2", (2, 16), dtype="int8")]
    decisions = [
        Decided("a", (4, 8), bits_per_weight=8.2),
        Decided("b", (4, 8), bits_per_weight=16),
        Decided("c", (4, 8)),
        Decided("d", (4, 8)),
    ]
    found = match_shapes(decisions, stored)
    assert {name: entry.name for name, entry in found.items()} == {"a": "c1", "b": "c0", "c": "c2"}


def mps_graph(code_dtype, nodes, scale_shape):
    values = [
        Value("codes", code_dtype, SHAPE),
        Value("scale", "float16", scale_shape),
        Value("table", "float16", (10, 4)),
    ]
    return Graph(
        (),
        ("w", "t"),
        tuple(nodes),
        {value.name: lambda: torch.zeros(1) for value in values},
        {value.name: value for value in values},
    )


def node(op, output, *inputs):
    return Node(
        op, {f"input{i}": Ref(name) for i, name in enumerate(inputs)}, (Value(output, "float16", SHAPE),)
    )


@pytest.mark.parametrize(
    ("code_dtype", "nodes", "scale_shape", "scheme"),
    [
        ("int4", [node("MPSDequantizePerChannelGroup", "w", "codes", "scale")], (64, 4), "int4 block 32"),
        (
            "int8",
            [node("MPSCast", "c", "codes"), node("MPSMul", "w", "c", "scale")],
            (64, 1),
            "int8 per channel",
        ),
        (
            "int8",
            [node("MPSCast", "c", "codes"), node("MPSMul", "w", "c", "scale")],
            (1, 128),
            "int8 per channel",
        ),
        (
            "int8",
            [
                node("MPSCast", "c", "codes"),
                node("MPSView", "v", "c"),
                node("MPSView", "s", "scale"),
                node("MPSMul", "w", "v", "s"),
            ],
            (64, 4),
            "int8 block 32",
        ),
    ],
)
def test_mps_delegates_store_codes_and_scales(code_dtype, nodes, scale_shape, scheme):
    inner = mps_graph(code_dtype, [*nodes, node("MPSEmbedding", "t", "table")], scale_shape)
    outer = Graph((), ("y",), (Node("delegate:MPSBackend", {}, (), blocks=(inner,)),))
    codes, table = stored_weights(outer)
    assert codes.scheme == scheme and table.scheme == "float16"
    assert codes.bits_per_weight == pytest.approx(bits_of(code_dtype) + 16 * math.prod(scale_shape) / SIZE)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("uint1", 1),
        ("uint3", 3),
        ("int4", 4),
        ("bool", 8),
        ("float8e4m3fn", 8),
        ("float16", 16),
        ("int64", 64),
    ],
)
def test_bits_of_types(dtype, bits):
    assert bits_of(dtype) == bits


def test_unreadable(tmp_path):
    (tmp_path / "x.pte").write_bytes(b"\0" * 64)
    with pytest.raises(UnreadableArtifact):
        audit(tmp_path / "x.pte", ())


# Decoded values: files that our converters wrote, then broken by hand


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """-> (compressed, {target: artifact}) of two int8 layers of one size and one 4-bit palette."""
    from pathlib import Path

    from cidermill.converters.coreml.write import write_mlpackage
    from cidermill.converters.mps.write import write_pte
    from cidermill.models.capture import capture
    from cidermill.models.source import Samples, Source, TensorSpec
    from cidermill.quantization.compress import compress
    from cidermill.quantization.recipe import parse_recipe

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.Linear(64, 32)
    )
    array = RANDOM.standard_normal((1, 64)).astype(np.float32)
    source = Source(Path("m.pt"), "module", "0", net.eval(), (TensorSpec("input", (1, 64), "float32"),))
    compressed = compress(
        capture(source, Samples("synthetic", ({"input": array},), 0)), parse_recipe("int8; 3=palettize4")
    )
    folder = tmp_path_factory.mktemp("written")
    return compressed, {
        "coreml": write_mlpackage(compressed, folder / "m.mlpackage"),
        "executorch-mps": write_pte(compressed, folder / "m.pte"),
    }


def audited(compressed, artifact, path=None):
    return audit(path or artifact.path, compressed.decisions, artifact.realised, compressed.weights)


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
def test_every_weight_is_decoded_and_compared(written, target):
    compressed, artifacts = written
    section = audited(compressed, artifacts[target])
    decoded = {entry.name: entry.decoded for entry in section.weights if entry.name in compressed.weights}
    assert decoded == {"0.weight": "equal", "2.weight": "equal", "3.weight": "equal"}
    assert judge(section) == ("pass", [])
    snr = {entry.name: entry.snr_db for entry in section.weights}
    assert 35 < snr["0.weight"] < 60 and 15 < snr["3.weight"] < 30 and snr["0.bias"] is None


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
def test_equal_weights_and_transposed_convolutions_are_found(target, tmp_path):
    """Two layers with equal weights are stored once; MPS turns the weights of transposed convolutions, and
    stores them in float16."""
    from pathlib import Path

    from cidermill.converters.coreml.write import write_mlpackage
    from cidermill.converters.mps.write import write_pte
    from cidermill.models.capture import capture
    from cidermill.models.source import Samples, Source, TensorSpec
    from cidermill.quantization.compress import compress
    from cidermill.quantization.recipe import parse_recipe

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.ConvTranspose1d(32, 24, 6, groups=2),
        torch.nn.Linear(64, 64, bias=False),
        torch.nn.Linear(64, 64, bias=False),
    )
    net[2].weight.data.copy_(net[1].weight.data)
    array = RANDOM.standard_normal((1, 32, 59)).astype(np.float32)
    source = Source(Path("m.pt"), "module", "0", net.eval(), (TensorSpec("input", (1, 32, 59), "float32"),))
    compressed = compress(
        capture(source, Samples("synthetic", ({"input": array},), 0)), parse_recipe("palettize4")
    )
    write, name = (write_mlpackage, "m.mlpackage") if target == "coreml" else (write_pte, "m.pte")
    artifact = write(compressed, tmp_path / name)
    section = audited(compressed, artifact)
    entries = {entry.name: entry for entry in section.weights if entry.name in compressed.weights}
    assert len(entries) == len(compressed.weights) == 3
    assert {entry.decoded for entry in entries.values()} == {"equal"} and section.verdict == "pass"
    if target == "executorch-mps":
        assert entries["0.weight"].realised == "float16" and artifact.realised["0.weight"][1] == 16
        assert "only folded into another constant" in entries["0.weight"].reason


@pytest.mark.parametrize("target", ["coreml", "executorch-mps"])
def test_one_changed_code_fails_the_verdict_and_names_the_weight(written, target, tmp_path):
    compressed, artifacts = written
    codes = compressed.weights["2.weight"].values.codes.numpy().tobytes()
    broken = tmp_path / artifacts[target].path.name
    if target == "coreml":
        shutil.copytree(artifacts[target].path, broken)
    else:
        shutil.copy(artifacts[target].path, broken)
    file = broken / "Data/com.apple.CoreML/weights/weight.bin" if target == "coreml" else broken
    content = bytearray(file.read_bytes())
    assert content.count(codes) == 1
    content[content.index(codes) + 100] ^= 1
    file.write_bytes(bytes(content))
    verdict, (warning,) = judge(audited(compressed, artifacts[target], broken))
    assert (
        verdict == "fail"
        and "does not hold the weights that the recipe made: 2.weight decodes to other values" in warning
    )


def test_a_mask_that_does_not_fit_its_data_fails_the_verdict(written, tmp_path):
    """The operator that decodes the weight refuses it: a verdict, not a crash."""
    from cidermill.converters.coreml.write import write_mlpackage
    from cidermill.quantization.compress import compress
    from cidermill.quantization.recipe import parse_recipe

    compressed = compress(written[0].captured, parse_recipe("prune50+int8"))
    artifact = write_mlpackage(compressed, tmp_path / "m.mlpackage")
    file = artifact.path / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(file.read_bytes())
    mask = np.packbits(compressed.weights["2.weight"].mask.numpy().reshape(-1), bitorder="little").tobytes()
    assert content.count(mask) == 1
    content[content.index(mask) + 10] ^= 1
    file.write_bytes(bytes(content))
    verdict, (warning,) = judge(audited(compressed, artifact))
    assert verdict == "fail" and "2.weight decodes to other values" in warning


def test_a_palette_whose_table_lost_its_type_is_no_palette():
    graph = Graph((), (), (), {}, {"w": Value("w", "int8", (4, 8)), "t": Value("t", "int32", (16, 1))})
    assert _plain(graph, graph.values["w"], {"t": "tables"}).scheme == "int8"


def test_swapped_weights_are_found_where_names_tell(written):
    """Two weights of one size under each other's names: the values exist in the file, but not where they
    belong."""
    compressed, artifacts = written
    swapped = dict(compressed.weights)
    swapped["0.weight"], swapped["2.weight"] = swapped["2.weight"], swapped["0.weight"]
    section = audit(artifacts["coreml"].path, compressed.decisions, {}, swapped)
    assert {entry.decoded for entry in section.weights if entry.name in ("0.weight", "2.weight")} == {
        "differs"
    }


def test_equal_tensors_that_are_stored_twice_are_counted(package):
    def twice(mb):
        first = mb.constexpr_blockwise_shift_scale(
            data=_bits(CODES, "int8"), scale=np.full((64, 1), 0.5, HALF), name="a_weight"
        )
        return mb.add(
            x=first,
            y=mb.constexpr_blockwise_shift_scale(
                data=_bits(CODES, "int8"), scale=np.full((64, 1), 0.25, HALF), name="b_weight"
            ),
        )

    path = package("twice", twice)
    sizes = audit(path, ()).bytes
    assert (sizes["weights"], sizes["duplicates"], sizes["scales"]) == (SIZE, SIZE, 256)
    assert sum(sizes.values()) == content_of(path).size_bytes


def test_tensors_that_differ_late_are_no_duplicates(package):
    other = CODES.copy()
    other.reshape(-1)[-1] ^= 1

    def similar(mb):
        scale = np.full((64, 1), 0.5, HALF)
        first = mb.constexpr_blockwise_shift_scale(data=_bits(CODES, "int8"), scale=scale, name="a_weight")
        return mb.add(
            x=first,
            y=mb.constexpr_blockwise_shift_scale(data=_bits(other, "int8"), scale=scale * 2, name="b_weight"),
        )

    assert audit(package("similar", similar), ()).bytes.get("duplicates", 0) == 0
