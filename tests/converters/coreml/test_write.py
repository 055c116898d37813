"""converters/coreml/write.py: the saved package holds the codes that the recipe made, computes what they say,
and is the same every time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.converters.coreml.deployment import check_target, operators_of, target_named
from cidermill.converters.coreml.write import write_mlpackage
from cidermill.models.capture import capture
from cidermill.models.digest import content_of
from cidermill.models.errors import UnsupportedOperators, UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.judge.audit import audit
from cidermill.validation.judge.compare import TOLERANCE_DB, compare, verdict
from cidermill.validation.mil.read import read_package

RECIPES = [
    "float32", "float16", "int8", "int8:per-tensor", "int8:block16", "int4", "int4:block16",
    "int4:per-channel", "palettize1", "palettize2", "palettize3", "palettize4", "palettize6", "palettize8",
    "palettize4:group8", "prune50", "prune75+int8", "prune50+int4", "prune50+palettize4", "int2", "int3",
    "int5", "int6:asymmetric", "int7:minmax", "int8:asymmetric", "int4:gptq", "int4:awq",
    "palettize4:vector2", "palettize6:vector4", "palettize4:scaled", "palettize4:group8:int8",
    "palettize4:sensitive", "prune50:global", "prune50:channels", "prune50:block4", "prune:2of4",
    "prune50:sparsegpt", "prune50:block4+palettize4:vector2",
    "int4; linear=int8; type:convolution=palettize4",
]  # fmt: skip
OLDER = [
    "float16",
    "int8",
    "int8:per-tensor",
    "int8:asymmetric",
    "palettize4",
    "palettize8",
    "prune50",
    "prune:2of4",
]


class Net(torch.nn.Module):
    """Every kind of weight that is compressed: convolution, transposed convolution, linear, embedding, a
    weight used as [in, out]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.up = torch.nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.embed = torch.nn.Embedding(100, 64)
        self.linear = torch.nn.Linear(64, 64)
        self.weight = torch.nn.Parameter(torch.randn(64, 64) / 8)

    def forward(self, image, tokens):
        image = self.up(torch.relu(self.conv(image)))
        text = self.linear(self.embed(tokens)) @ self.weight
        return {"picture": image, "text": text}


@pytest.fixture(scope="module")
def captured():
    generator = np.random.default_rng(0)
    arrays = {
        "image": generator.standard_normal((1, 16, 8, 8)).astype(np.float32),
        "tokens": np.arange(12, dtype=np.int32)[None],
    }
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    return capture(
        Source(Path("net.pt"), "module", "0", Net().eval(), specs), Samples("synthetic", (arrays,), 0)
    )


def errors_of(captured, recipe, path, **options):
    compressed = compress(captured, parse_recipe(recipe))
    artifact = write_mlpackage(compressed, path, **options)
    expected = evaluate(decompressed(compressed), captured)
    return artifact, compressed, compare(expected, [open_runner(path)(captured.samples.batches[0])])


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_saved_bytes_compute_what_the_recipe_says(captured, tmp_path, recipe):
    artifact, compressed, errors = errors_of(captured, recipe, tmp_path / "net.mlpackage")
    assert verdict(errors, TOLERANCE_DB[artifact.precision]) == "pass", errors
    assert {error.output for error in errors} == {"picture", "text"}


@pytest.mark.parametrize("recipe", OLDER)
def test_older_systems_get_their_own_operators(captured, tmp_path, recipe):
    artifact, _, errors = errors_of(captured, recipe, tmp_path / "net.mlpackage", deployment_target="iOS16")
    assert verdict(errors, TOLERANCE_DB[artifact.precision]) == "pass", errors
    operators = {node.op for node in read_package(artifact.path).functions["main"].nodes}
    assert "constexpr_blockwise_shift_scale" not in operators


@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if not recipe.startswith("float")])
def test_every_stored_weight_decodes_to_the_weight_that_was_made(captured, tmp_path, recipe, target):
    """The audit of the saved file finds `dense()`, bit for bit in half precision, in every weight."""
    compressed = compress(captured, parse_recipe(recipe))
    artifact = write_mlpackage(compressed, tmp_path / "net.mlpackage", deployment_target=target)
    section = audit(artifact.path, compressed.decisions, artifact.realised, compressed.weights)
    found = {entry.name: entry.decoded for entry in section.weights}
    assert section.verdict == "pass" and compressed.weights
    assert {found[name] for name in compressed.weights} == {"equal"}


def test_names_and_types_are_the_models_own(captured, tmp_path):
    artifact, _, _ = errors_of(captured, "int8", tmp_path / "net.mlpackage")
    runner = open_runner(artifact.path)
    assert [(value.name, value.dtype, value.shape) for value in runner.inputs] == [
        ("image", "float32", (1, 16, 8, 8)),
        ("tokens", "int32", (1, 12)),
    ]
    assert [(value.name, value.dtype) for value in runner.outputs] == [
        ("picture", "float32"),
        ("text", "float32"),
    ]


def test_a_buffer_that_serves_as_a_weight_is_compressed_too(tmp_path):
    class Frozen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("matrix", torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return torch.nn.functional.linear(x, self.matrix)

    array = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    source = Source(Path("m.pt"), "module", "0", Frozen(), (TensorSpec("x", (1, 64), "float32"),))
    found = capture(source, Samples("synthetic", ({"x": array},), 0))
    artifact, _, errors = errors_of(found, "int4", tmp_path / "m.mlpackage")
    assert verdict(errors, 40) == "pass"
    assert "constexpr_blockwise_shift_scale" in {
        node.op for node in read_package(artifact.path).functions["main"].nodes
    }


def test_operations_are_traced_back_to_module_and_line(captured, tmp_path):
    artifact, _, _ = errors_of(captured, "int8", tmp_path / "net.mlpackage")
    nodes = read_package(artifact.path).functions["main"].nodes
    scopes = {node.op: (node.scope, node.location.split(":")[0]) for node in nodes}
    assert (
        scopes["conv"] == ("conv", "conv.py")
        and scopes["conv_transpose"] == ("up", "conv.py")
        and scopes["gather"] == ("embed", "sparse.py")
    )


BUILD = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from pathlib import Path
from test_write import Net, capture, compress, parse_recipe, write_mlpackage, Source, Samples, TensorSpec
arrays = {{"image": np.zeros((1, 16, 8, 8), np.float32), "tokens": np.zeros((1, 12), np.int32)}}
specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
source = Source(Path("net.pt"), "module", "0", Net().eval(), specs)
captured = capture(source, Samples("synthetic", (arrays,), 0))
print(write_mlpackage(compress(captured, parse_recipe("int4")), Path({path!r})).sha256)
"""


def test_the_same_input_gives_the_same_bytes(tmp_path):
    """Two processes with different hash seeds, in different folders."""
    digests = set()
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        script = BUILD.format(tests=str(Path(__file__).parent), path=str(tmp_path / seed / "net.mlpackage"))
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
        names = sorted(
            str(path.relative_to(tmp_path / seed)) for path in (tmp_path / seed).rglob("*") if path.is_file()
        )
    assert len(digests) == 1
    assert names == [
        f"net.mlpackage/{name}"
        for name in (
            "Data/com.apple.CoreML/model.mlmodel",
            "Data/com.apple.CoreML/weights/weight.bin",
            "Manifest.json",
        )
    ]


@pytest.mark.parametrize("recipe", ["float16", "int4:block32", "palettize4", "prune50"])
def test_bytes_do_not_depend_on_when_coremltools_writer_is_destroyed(captured, tmp_path, monkeypatch, recipe):
    """It writes its last count of records then; whoever holds a frame of a conversion, as profilers do, holds
    the writer."""
    from coremltools.converters.mil.backend.mil import load

    compressed = compress(captured, parse_recipe(recipe))
    usual = write_mlpackage(compressed, tmp_path / "usual.mlpackage")
    held, writer = [], load.BlobWriter
    monkeypatch.setattr(load, "BlobWriter", lambda path: held.append(writer(path)) or held[-1])
    with_held = write_mlpackage(compressed, tmp_path / "held.mlpackage")
    assert held and with_held.sha256 == usual.sha256


def test_a_package_stays_as_it_is_when_coremltools_reads_it(captured, tmp_path):
    """Its reader puts the manifest down again, in its own form: checksums and signatures would be void."""
    import coremltools as ct

    written = write_mlpackage(compress(captured, parse_recipe("int8")), tmp_path / "net.mlpackage")
    ct.utils.load_spec(str(written.path))
    assert content_of(written.path).sha256 == written.sha256


def test_nothing_is_lost_where_another_thread_holds_the_frames_of_a_conversion(captured, tmp_path):
    """As the profiler in each of Dask's workers does."""
    compressed = compress(captured, parse_recipe("int8"))
    usual = write_mlpackage(compressed, tmp_path / "usual.mlpackage")
    frames = []
    sys.setprofile(lambda frame, event, argument: frames.append(frame) if event == "call" else None)
    try:
        watched = write_mlpackage(compressed, tmp_path / "watched.mlpackage")
    finally:
        sys.setprofile(None)
    assert len(frames) > 1000 and watched.sha256 == usual.sha256


@pytest.mark.parametrize(
    ("recipe", "bits"), [("int8", 8.0), ("int4:block32", 4.5), ("palettize4", 4.0), ("float16", 16.0)]
)
def test_the_file_is_as_small_as_the_recipe_promises(tmp_path, recipe, bits):
    """Within 2 % of the weights' bits plus, for int8, their scales of two bytes an output channel."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(4)])
    array = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float32)
    source = Source(Path("m.pt"), "module", "0", net.eval(), (TensorSpec("input", (1, 1024), "float32"),))
    found = capture(source, Samples("synthetic", ({"input": array},), 0))
    artifact = write_mlpackage(compress(found, parse_recipe(recipe)), tmp_path / "m.mlpackage")
    weights = 4 * 1024 * 1024
    promised = weights * bits / 8 + (4 * 1024 * 2 if recipe == "int8" else 0)
    assert promised <= artifact.size_bytes <= 1.02 * promised


def test_operators_without_a_translation_are_all_named(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x) + torch.special.bessel_j1(torch.relu(x))

    array = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    source = Source(Path("m.pt"), "module", "0", Odd(), (TensorSpec("x", (1, 8), "float32"),))
    found = capture(source, Samples("synthetic", ({"x": array},), 0))
    with pytest.raises(UnsupportedOperators) as caught:
        write_mlpackage(compress(found, parse_recipe("float16")), tmp_path / "m.mlpackage")
    assert "cannot express 2 operators" in caught.value.message
    assert "special_bessel_j0" in caught.value.message and "special_bessel_j1" in caught.value.message
    assert "test_write.py:" in caught.value.message and "float32[1, 8]" in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "needed", "text"),
    [
        ("iOS16", "iOS18", "iOS16 cannot hold int4: 4-bit integer weights"),
        ("iOS99", "iOS15", "Unknown deployment target 'iOS99'"),
        ("macOS13", "iOS18", "macOS13 cannot hold int4"),
        ("watchOS10", "iOS18", "watchOS10 cannot hold int4"),
        ("visionOS1", "iOS18", "visionOS1 cannot hold int4"),
    ],
)
def test_a_target_that_cannot_hold_the_recipe(target, needed, text):
    with pytest.raises(UserError, match=text) as caught:
        check_target(target, "int4", needed, "4-bit integer weights")
    assert "iOS18" in caught.value.hint


@pytest.mark.parametrize(
    "target", ["iOS18", "macOS15", "iOS26", "macOS26", "watchOS11", "tvOS18", "visionOS2", "visionOS26"]
)
def test_targets_that_can(target):
    check_target(target, "int4", "iOS18", "4-bit integer weights")


@pytest.mark.parametrize(
    ("given", "spelled", "operators"),
    [("ios15", "iOS15", "iOS15"), ("WATCHOS11", "watchOS11", "iOS18"), ("visionos1", "visionOS1", "iOS17"),
     ("tvOS16", "tvOS16", "iOS16"), ("macos12", "macOS12", "iOS15"), ("watchOS26", "watchOS26", "iOS26")],
)  # fmt: skip
def test_targets_however_they_are_spelled(given, spelled, operators):
    """Apple releases systems of one year with one operator set."""
    assert (target_named(given), operators_of(target_named(given))) == (spelled, operators)


def test_a_scalar_input_keeps_its_name(tmp_path):
    class Gain(torch.nn.Module):
        def forward(self, x, gain, steps):
            return x * gain + steps

    arrays = {
        "x": np.ones((1, 8), np.float32),
        "gain": np.array(2.5, np.float32),
        "steps": np.array(3, np.int32),
    }
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    scalars = capture(
        Source(Path("gain.pt"), "module", "0", Gain().eval(), specs), Samples("synthetic", (arrays,), 0)
    )
    write_mlpackage(compress(scalars, parse_recipe("float16")), tmp_path / "gain.mlpackage")
    runner = open_runner(tmp_path / "gain.mlpackage")
    assert {value.name: value.shape for value in runner.inputs} == {"x": (1, 8), "gain": (1,), "steps": (1,)}
    assert runner(arrays)["output"].tolist() == [[5.5] * 8]
