"""One conversion does each thing once, and a reader comes from the command to the arithmetic in few steps."""

import importlib
import sys
from collections import Counter

import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert
from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.run import run
from cidermill.quantization import affine
from cidermill.validation.mil.ops import OPS

TARGETS = ("coreml", "executorch-mps")
MOST_FRAMES = 9


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 64)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(2, 64),)), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def converted(model, out, **options):
    return run(plan_from(model, {"out": out, **options}))


@pytest.fixture
def calls(monkeypatch):
    """-> count("validation.mil.read", "read_package"): from now on its calls are counted, wherever it was
    imported to."""
    counts = Counter()

    def count(module, name, by=lambda *arguments, **options: None):
        original = getattr(importlib.import_module(f"cidermill.{module}"), name)

        def counted(*arguments, **options):
            counts[module, name, by(*arguments, **options)] += 1
            return original(*arguments, **options)

        for holder in [held for key, held in sys.modules.items() if key.startswith("cidermill.")]:
            for alias in [alias for alias, value in vars(holder).items() if value is original]:
                monkeypatch.setattr(holder, alias, counted)
        return lambda: [times for (*place, _), times in counts.items() if place == [module, name]]

    return count


@pytest.mark.parametrize("recipe", ["int8", "float16"])
def test_a_conversion_does_everything_once(model, tmp_path, calls, recipe):
    converted(model, tmp_path / "first", target=TARGETS, quant=recipe)  # every module is imported
    lowered = [calls(f"converters.{target}.lower", "lower") for target in ("coreml", "mps")]
    parsed = calls("validation.mil.read", "read_package"), calls("validation.pte.read", "open_program")
    tensors = calls("models.tensors", "tensors_of", by=id)
    layers = calls("models.roles", "layers_of")
    written = calls("pipeline.report.json_files", "write_json", by=lambda report, path: path.name)
    report = converted(model, tmp_path / "second", target=TARGETS, quant=recipe)
    assert report.verdict == "pass"
    assert [count() for count in lowered] == [[1], [1]]
    assert [count() for count in parsed] == [[1], [1]]
    assert written() == [1]
    assert max(tensors()) == 1 and layers() == [1]


def test_rounded_inputs_are_traced_once(model, tmp_path, calls):
    """What is compared with and what is written come from one program."""
    traced = calls("quantization.activations", "insert_rounding")
    converted(model, tmp_path / "out", quant="w8a8")
    assert traced() == [1]


def test_with_a_cache_the_report_is_written_once_too(model, tmp_path, calls, monkeypatch):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "cache"))
    written = calls("pipeline.report.json_files", "write_json")
    first = converted(model, tmp_path / "out")
    assert written() == [1]
    again = converted(model, tmp_path / "again")
    assert written() == [2] and all(stage.cached for stage in again.stages)
    assert again.artifacts == first.artifacts


def frames_of_ours(function):
    """The function, and a list that gets the depth of each call: frames of ours from the command to it."""
    depths = []

    def watched(*arguments, **options):
        frame, depth = sys._getframe(1), 1
        while frame is not None:
            depth += frame.f_globals.get("__name__", "").startswith("cidermill.")
            frame = frame.f_back
        depths.append(depth)
        return function(*arguments, **options)

    return watched, depths


def test_few_steps_lead_from_the_command_to_the_arithmetic(model, tmp_path, monkeypatch):
    from cidermill.quantization import layers

    quantize, to_the_kernel = frames_of_ours(affine.quantize)
    linear, to_the_operator = frames_of_ours(OPS["linear"])
    monkeypatch.setattr(layers, "quantize", quantize)
    monkeypatch.setitem(OPS, "linear", linear)
    words = [str(model), "--quant", "int8", "--out", str(tmp_path / "out"), "--quiet"]
    assert CliRunner().invoke(convert, words).exit_code == 0
    assert 0 < max(to_the_kernel) <= MOST_FRAMES and 0 < max(to_the_operator) <= MOST_FRAMES


def test_an_artifact_foresees_its_size_where_the_shapes_tell(model, tmp_path):
    """The bytes of a small Core ML graph are known after lowering only, which is not done twice."""
    report = converted(model, tmp_path / "out", target=TARGETS)
    foreseen = {row.target: row.predicted.size_bytes for row in report.artifacts}
    assert foreseen["coreml"] is None
    sizes = {row.target: row.size_bytes for row in report.artifacts}
    assert foreseen["executorch-mps"] == pytest.approx(sizes["executorch-mps"], abs=3000)
