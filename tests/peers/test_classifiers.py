"""Classifiers that coremltools writes of a ClassifierConfig beside ours: the same interface in the
specification, the same answers in the runner."""

import numpy as np
import pytest
import torch

from cidermill import convert, open_runner, validate

LABELS = ["zebra", "ant", "mole", "bee"]
NUMBERS = [7, -1, 300, 4]


def features(width):
    return torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.GELU(), torch.nn.Linear(width, 4))


MODELS = {
    "linear": (features(16), (1, 6)),
    "vector": (torch.nn.Sequential(features(8), torch.nn.Flatten(0)), (1, 6)),
    "convolutional": (
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(), torch.nn.Linear(8, 4),
        ),
        (1, 3, 10, 10),
    ),
    "attention": (
        torch.nn.Sequential(
            torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.nn.Flatten(),
            torch.nn.Linear(40, 4),
        ),
        (1, 5, 8),
    ),
}  # fmt: skip


@pytest.fixture(
    scope="module", params=[(name, labels) for name in MODELS for labels in (LABELS, NUMBERS)][:6]
)
def both(request, tmp_path_factory, ct):
    """-> (labels, an input, coremltools' package, ours, the model)"""
    name, labels = request.param
    folder = tmp_path_factory.mktemp("both")
    model, shape = MODELS[name]
    torch.manual_seed(0)
    model = torch.nn.Sequential(model, torch.nn.Softmax(-1)).eval()
    x = torch.randn(shape)
    exported = torch.export.export(model, (x,)).run_decompositions({})
    theirs = ct.convert(
        exported,
        classifier_config=ct.ClassifierConfig(labels),
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    theirs.save(str(folder / "theirs.mlpackage"))
    convert(model, (x,), labels=labels, out=folder / "out", cache=False)
    return labels, x.numpy(), folder / "theirs.mlpackage", folder / "out/Sequential.mlpackage", model


def specification(package, ct):
    return ct.utils.load_spec(str(package / "Data/com.apple.CoreML/model.mlmodel"))


def classification(spec):
    """The last operation, without the name of the array that it reads."""
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    operation = block.operations[-1]
    operation.inputs["probabilities"].arguments[0].name = "array"
    return operation, list(block.outputs)


def test_the_interface_is_theirs(both, ct):
    _, _, theirs, ours, _ = both
    specs = [specification(package, ct) for package in (theirs, ours)]
    described = [spec.description for spec in specs]
    assert described[0].output == described[1].output
    assert [type.type for type in described[0].input] == [type.type for type in described[1].input]
    for name in ("predictedFeatureName", "predictedProbabilitiesName"):
        assert getattr(described[0], name) == getattr(described[1], name) != ""
    assert specs[0].specificationVersion == specs[1].specificationVersion
    assert classification(specs[0]) == classification(specs[1])


def test_the_answers_are_the_same(both):
    labels, x, theirs, ours, model = both
    first, second = (
        runner([x]) for runner in (open_runner(theirs, host="reference"), open_runner(ours, host="reference"))
    )
    assert first["classLabel"] == second["classLabel"]
    assert list(first["classLabel_probs"]) == list(second["classLabel_probs"]) == labels
    values = [np.array(list(answer["classLabel_probs"].values())) for answer in (first, second)]
    assert np.abs(values[0] - values[1]).max() < 2e-3
    assert validate(theirs, model, (torch.from_numpy(x),)).verdict == "pass"
