"""converters/coreml/passes.py: what is left out would have changed nothing."""

import numpy as np
import pytest
import torch

from cidermill import convert, open_runner
from cidermill.converters.coreml import passes
from cidermill.converters.coreml.tools import import_coremltools
from cidermill.converters.coreml.write import write_mlpackage
from cidermill.models.capture import capture
from cidermill.pipeline.loading import load_source, with_samples
from cidermill.pipeline.plan import plan_from
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe

QUICK = ("gemma2", "swin")
OTHERS = """
    mobilevit
    bert distilbert albert t5-encoder gpt2 llama qwen3 mamba resnet mobilenet-v2 convnext vit beit segformer
    yolos clip-vision wav2vec2 whisper-encoder
""".split()


def test_each_name_is_one_of_coremltools():
    import_coremltools()
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    frontend = PassPipeline._PIPELINE_NAME_TO_PASSES["frontend_pytorch"]
    assert set(passes.WORKS_ON) <= {*passes.pass_pipeline().passes, *frontend}
    assert all(name in PASS_REGISTRY for name in passes.WORKS_ON)


def packages_agree(path, folder, monkeypatch):
    """Both packages are written in one process, so that nothing but the passes differs."""
    import_coremltools()
    from coremltools.converters.mil.mil import Block

    source, samples = with_samples(load_source(plan_from(path, {"out": folder / "out"})), None)
    compressed = compress(capture(source, samples), parse_recipe("int8"))
    run = []
    types = passes._operation_types
    monkeypatch.setattr(passes, "_operation_types", lambda program: run.append(program) or types(program))
    lean = write_mlpackage(compressed, folder / "lean.mlpackage")
    assert run, "the table was asked"
    monkeypatch.setattr(passes, "WORKS_ON", {})
    monkeypatch.setattr(passes, "_find_compressed", Block._propagate_nonreplaceable_vars)
    assert write_mlpackage(compressed, folder / "full.mlpackage").sha256 == lean.sha256


@pytest.mark.parametrize("name", QUICK)
def test_the_package_is_the_same_without_them(zoo_path, tmp_path, monkeypatch, name):
    packages_agree(zoo_path(name), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_package_is_the_same_without_them_for_the_other_architectures(
    zoo_path, tmp_path, monkeypatch, name
):
    packages_agree(zoo_path(name), tmp_path, monkeypatch)


def test_a_pass_that_fails_over_a_program_is_left_out(tmp_path):
    """coremltools' `reduce_transposes` leaves a product here whose factors do not fit."""

    class Similarities(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 4, stride=4)

        def forward(self, x):
            features = self.conv(x).flatten(2).transpose(1, 2)
            return (features @ features.transpose(1, 2)).softmax(-1)

    torch.manual_seed(0)
    net, picture = Similarities().eval(), torch.randn(1, 3, 32, 32)
    report = convert(net, (picture,), quant="int8", out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
    answer = open_runner(tmp_path / "out/Similarities.mlpackage")({"x": picture})["output"]
    assert np.abs(answer - net(picture).detach().numpy()).max() < 0.02


def test_a_pass_that_must_run_still_fails_aloud(tmp_path, monkeypatch):
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    def fail(program):
        raise ValueError("broken on purpose")

    monkeypatch.setitem(PASS_REGISTRY.passes, "common::add_fp16_cast", fail)
    fail.set_options = lambda options: None
    with pytest.raises(ValueError, match="broken on purpose"):
        convert(torch.nn.Linear(4, 4), (torch.zeros(1, 4),), out=tmp_path / "out", cache=False)
