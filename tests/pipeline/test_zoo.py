"""Every architecture of the zoo through the whole job on both targets. CI runs eight of them at int8; `make
test-all` runs the others and the other recipes too."""

import pytest

from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.run import run
from cidermill.pipeline.terminal.report import progress
from cidermill.validation import open_runner

ARCHITECTURES = """
    bert distilbert albert t5-encoder gpt2 llama qwen3 gemma2 mamba resnet mobilenet-v2 mobilevit convnext vit
    beit swin segformer yolos clip-vision wav2vec2 whisper-encoder
""".split()
QUICK = ("bert", "gpt2", "qwen3", "resnet", "mobilenet-v2", "vit", "segformer", "whisper-encoder")


def press(path, out, recipe, targets):
    with progress(enabled=False) as show:
        report = run(plan_from(path, {"target": targets, "quant": recipe, "out": out}), show)
    for artifact in report.artifacts:
        for error in artifact.validation.conversion:
            assert error.psnr_db >= 40 and not error.vacuous, (artifact.target, error)
    assert report.verdict == "pass"
    return report


def test_the_list_is_the_zoos(zoo):
    assert ARCHITECTURES == list(zoo.ZOO) and set(QUICK) < set(ARCHITECTURES)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES],
)
def test_int8_on_both_targets(zoo_path, tmp_path, name):
    press(zoo_path(name), tmp_path / "out", "int8", ("coreml", "executorch-mps"))
    operators = [node.op for node in open_runner(next((tmp_path / "out").glob("*.pte"))).graph.nodes]
    assert operators == ["delegate:MPSBackend"], "one delegate and nothing outside of it"


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("recipe", "targets"),
    [
        ("float16", ("coreml", "executorch-mps")),
        ("float32", ("coreml", "executorch-mps")),
        ("int4", ("coreml", "executorch-mps")),
        ("palettize4", ("coreml",)),
        ("prune50+int8", ("coreml",)),
    ],
)
def test_other_recipes(zoo_path, tmp_path, name, recipe, targets):
    press(zoo_path(name), tmp_path / "out", recipe, targets)
