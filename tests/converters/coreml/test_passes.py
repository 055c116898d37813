"""converters/coreml/passes.py: what is left out would have changed nothing."""

import pytest

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
