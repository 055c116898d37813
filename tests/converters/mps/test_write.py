"""converters/mps/write.py: the saved .pte is one MPS delegate with the recipe's codes, computes what they
say, and is always the same."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.converters.mps import delegate as mps_delegate
from cidermill.converters.mps.write import write_pte
from cidermill.models.capture import capture
from cidermill.models.errors import UnsupportedOperators
from cidermill.models.evaluate import evaluate
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner

QUICK = ["bert", "segformer"]  # all of them go through tests/pipeline/test_zoo.py


class Net(torch.nn.Module):
    """Every kind of weight: convolution, embedding tied to an output layer, linear, a weight used as [in,
    out]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(16, 32, 4, padding=1)
        self.embed = torch.nn.Embedding(100, 64)
        self.linear = torch.nn.Linear(64, 64)
        self.weight = torch.nn.Parameter(torch.randn(64, 64) / 8)
        self.head = torch.nn.Linear(64, 100, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, image, tokens):
        picture = self.conv(image)
        text = self.head(torch.tanh(self.linear(self.embed(tokens)) @ self.weight))
        return {"picture": picture, "text": text}


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def captured_of(module, **arrays):
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    return capture(
        Source(Path("toy.pt"), "module", "0", module.eval(), specs), Samples("synthetic", (arrays,), 0)
    )


def image(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def net():
    return captured_of(Net(), image=image(1, 16, 8, 8), tokens=np.arange(12, dtype=np.int32)[None])


@pytest.fixture
def zoo_captured(zoo):
    def build(name):
        module, inputs = zoo.build(name)
        arrays = {
            key: (value.int() if value.dtype == torch.int64 else value).numpy()
            for key, value in inputs.items()
        }
        specs = tuple(TensorSpec(key, array.shape, str(array.dtype)) for key, array in arrays.items())
        program = torch.export.export(
            zoo.FirstOutput(module, list(inputs)).eval(), tuple(inputs.values()), strict=False
        )
        return capture(
            Source(Path(f"{name}.pt2"), "exported-program", "0", module, specs, program),
            Samples("synthetic", (arrays,), 0),
        )

    return build


def psnr_db(expected, result):
    error = np.sqrt(np.mean((expected.astype(np.float64) - result) ** 2))
    return 20 * np.log10(np.abs(expected).max() / max(error, 1e-30))


def written(captured, recipe, path):
    """-> (artifact, compressed, operators at the top of the program, worst PSNR of its reference run in
    dB)"""
    compressed = compress(captured, parse_recipe(recipe))
    artifact = write_pte(compressed, path)
    runner = open_runner(path, host="reference")
    results = runner(captured.samples.batches[0])
    expected = evaluate(decompressed(compressed), captured)[0]
    assert list(results) == list(expected)  # the names survive
    return (
        artifact,
        compressed,
        [node.op for node in runner.graph.nodes],
        min(psnr_db(expected[name], results[name]) for name in expected),
    )


def delegate_nodes(path):
    return [
        inner
        for node in open_runner(path, host="reference").graph.nodes
        for block in node.blocks
        for inner in block.nodes
    ]


@pytest.mark.parametrize("recipe", ["float16", "int8", pytest.param("int4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", QUICK)
def test_zoo_is_one_delegate_that_computes_the_model(zoo_captured, name, recipe, tmp_path):
    artifact, _, operators, psnr = written(zoo_captured(name), recipe, tmp_path / "m.pte")
    assert operators == ["delegate:MPSBackend"] and artifact.warnings == ()
    assert psnr >= 40


def test_float32_is_exact(net, tmp_path):
    artifact, _, operators, psnr = written(net, "float32", tmp_path / "m.pte")
    assert operators == ["delegate:MPSBackend"] and psnr > 110 and artifact.precision == "float32"


@pytest.mark.parametrize(
    ("recipe", "schemes"),
    [
        ("int8", {"int8"}),
        ("int8:per-tensor", {"int8"}),
        ("int8:block16", {"int8"}),
        ("int4", {"int4"}),
        ("int4:per-channel", {"int4"}),
        ("palettize4", {"palettize4"}),
        ("palettize8", {"palettize8"}),
        ("palettize6:group8", {"palettize6"}),
        ("palettize4:vector2", {"palettize4"}),
        ("palettize4:scaled", {"palettize4"}),
        ("int8:asymmetric", {"int8"}),
        ("int2", {"int4"}),
        ("int6", {"int8-storage"}),
        ("prune50", {"float16 (dense)"}),
        ("prune50+int8", {"int8"}),
        ("prune50+palettize4", {"palettize4"}),
    ],
)
def test_recipes_are_stored_as_realised_says(net, recipe, schemes, tmp_path):
    artifact, compressed, _, psnr = written(net, recipe, tmp_path / "m.pte")
    assert psnr >= 40
    assert {scheme for scheme, _, _ in artifact.realised.values()} == schemes
    distinct = {name: int(np.prod(weight.shape)) for name, weight in compressed.weights.items()}
    stored = sum(artifact.realised[name][1] * size / 8 for name, size in distinct.items())
    plain = write_pte(compress(net, parse_recipe("float16")), tmp_path / "plain.pte")
    others = plain.size_bytes - sum(2 * size for size in distinct.values())
    nodes = len(delegate_nodes(artifact.path)) - len(delegate_nodes(plain.path))
    # a node that decompresses, with its values, takes some 110
    assert abs(artifact.size_bytes - others - stored) < 0.02 * stored + 140 * nodes


def test_dense_weights_say_why(net, tmp_path):
    artifact, *_ = written(net, "prune50", tmp_path / "m.pte")
    assert artifact.realised["linear.weight"] == (
        "float16 (dense)",
        16.0,
        "the MPS delegate has no sparse weights; the recipe saves no bytes on this target",
    )


def test_int4_that_the_node_cannot_hold_is_stored_in_bytes(tmp_path):
    captured = captured_of(Function(torch.nn.Conv2d(3, 100, 3)), x=image(1, 3, 8, 8))  # rows of 27
    artifact, _, _, psnr = written(captured, "int4:per-channel", tmp_path / "m.pte")
    ((scheme, bits, reason),) = artifact.realised.values()
    assert scheme == "int8-storage" and 8 < bits < 9 and psnr >= 40
    assert (
        reason
        == "the MPS delegate's int4 node needs rows and blocks of an even length, not 27 in blocks of 27"
    )


def test_int4_nibbles():
    codes = torch.tensor([[-8, 7, 1, -1]], dtype=torch.int8)
    assert mps_delegate.pack_int4(codes).tolist() == [[0x78, 0xF1]]  # the low nibble is the even column


def test_operators_without_an_mps_form_run_as_portable_kernels(tmp_path):
    captured = captured_of(
        Function(lambda x: torch.relu(x) + torch.topk(x * 2, 3).values.sum()), x=image(2, 8)
    )
    artifact, _, operators, psnr = written(captured, "float16", tmp_path / "m.pte")
    assert (
        any("topk" in operator for operator in operators)
        and operators.count("delegate:MPSBackend") == 2
        and psnr > 40
    )
    assert len(artifact.warnings) == 1
    assert artifact.warnings[0].startswith(
        "outside the MPS delegate, as portable CPU kernels: aten.topk.default ("
    )
    assert "test_write.py:" in artifact.warnings[0] and "float16[2, 8]" in artifact.warnings[0]


def test_operators_that_nothing_computes_are_all_named(tmp_path):
    captured = captured_of(
        Function(lambda x: torch.special.bessel_j0(x) + torch.special.bessel_j1(x)), x=image(2, 3)
    )
    with pytest.raises(UnsupportedOperators) as failure:
        write_pte(compress(captured, parse_recipe("float32")), tmp_path / "m.pte")
    lines = str(failure.value).splitlines()
    assert lines[0] == "ExecuTorch's MPS target cannot express 2 operators of this model:"
    assert (
        "special_bessel_j0" in lines[1]
        and "test_write.py:" in lines[1]
        and "float32[2, 3] -> float32[2, 3]" in lines[1]
    )
    assert "special_bessel_j1" in lines[2]
    assert lines[3] == "Replace these operators in the model, or convert it with --target coreml."
    assert not (tmp_path / "m.pte").exists()


def test_shared_ids_of_the_stock_serializer(tmp_path):
    """Its table of scalars outlives a program and takes 1, 1.0 and True for one: a second file would refer to
    values it does not have."""
    function = Function(lambda x: (x + 1) * 1.0 - (x > 1).float() * -1 - (x > -2).int() * -2)
    captured = captured_of(function, x=image(3, 4))
    first, *_, psnr = written(captured, "float16", tmp_path / "a.pte")
    second, *_ = written(captured, "float16", tmp_path / "b.pte")
    assert psnr > 40 and first.sha256 == second.sha256


def test_casts_are_written(tmp_path):
    """The stock visitor of _to_copy writes nothing."""
    captured = captured_of(Function(lambda x: (x * 4).int().float() / 8), x=image(3, 4))
    assert written(captured, "float32", tmp_path / "m.pte")[3] > 100


DETERMINISM = """
import sys, pathlib, numpy as np
sys.path.insert(0, {folder!r})
import test_write as t
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
net = t.captured_of(t.Net(), image=t.image(1, 16, 8, 8), tokens=np.arange(12, dtype=np.int32)[None])
print(t.write_pte(compress(net, parse_recipe("int8")), pathlib.Path(sys.argv[1])).sha256)
"""


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    digests = set()
    for seed in ("1", "2"):
        command = [
            sys.executable,
            "-c",
            DETERMINISM.format(folder=str(Path(__file__).parent)),
            str(tmp_path / f"{seed}.pte"),
        ]
        run = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout.split()[-1])
    assert len(digests) == 1


def test_nothing_is_printed_and_the_root_logger_stays_as_it_was(net, tmp_path, capfd):
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    write_pte(compress(net, parse_recipe("float16")), tmp_path / "m.pte")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers and logging.getLogger().level == level
