"""Detectors that coremltools' own Pipeline puts together beside ours: the same interface in the
specification, the same boxes in the runner."""

import numpy as np
import pytest
import torch

from cidermill import convert, open_runner

LABELS = ["cat", "dog", "cow"]


class Anchors(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 7, 2, stride=2)

    def forward(self, image):
        cells = (self.conv(image) * 3).flatten(2)[0].transpose(0, 1).sigmoid()
        return cells[:, :3], cells[:, 3:] * 0.4 + 0.2


class Queries(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.scores, self.boxes = (torch.nn.Linear(12, width) for width in (12, 3, 4))

    def forward(self, image):
        rows = self.mix(image.reshape(16, 12)).relu()
        return self.scores(rows).softmax(-1), self.boxes(rows).sigmoid()


@pytest.fixture(scope="module", params=[Anchors, Queries])
def both(request, tmp_path_factory, ct):
    """-> (coremltools' package, ours)"""
    folder = tmp_path_factory.mktemp("both")
    torch.manual_seed(0)
    model, image = request.param().eval(), torch.zeros(1, 3, 8, 8)
    stage = ct.convert(
        torch.export.export(model, (image,)).run_decompositions({}),
        outputs=[ct.TensorType(name, dtype=np.float32) for name in ("raw_confidence", "raw_coordinates")],
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    theirs(ct, stage).save(str(folder / "theirs.mlpackage"))
    convert(
        model, (image,), nms="output_1,output_0:iou=0.3:confidence=0.4", labels=LABELS, out=folder / "out",
        deployment_target="iOS17", cache=False,
    )  # fmt: skip
    return folder / "theirs.mlpackage", next((folder / "out").glob("*.mlpackage"))


def theirs(ct, stage):
    """As coremltools' guide to pipelines and the exporters of detectors do it."""
    spec, types = stage.get_spec(), ct.models.datatypes
    last = ct.proto.Model_pb2.Model()
    last.specificationVersion = 5
    rules = last.nonMaximumSuppression
    for place, (name, width) in enumerate((("confidence", 3), ("coordinates", 4))):
        last.description.input.add().CopyFrom(spec.description.output[place])
        last.description.output.add().CopyFrom(spec.description.output[place])
        entry = last.description.output[place]
        entry.name = name
        del entry.type.multiArrayType.shape[:]
        for low, high in ((0, -1), (width, width)):
            entry.type.multiArrayType.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
    rules.confidenceInputFeatureName, rules.coordinatesInputFeatureName = "raw_confidence", "raw_coordinates"
    rules.confidenceOutputFeatureName, rules.coordinatesOutputFeatureName = "confidence", "coordinates"
    rules.iouThresholdInputFeatureName = "iouThreshold"
    rules.confidenceThresholdInputFeatureName = "confidenceThreshold"
    rules.iouThreshold, rules.confidenceThreshold, rules.pickTop.perClass = 0.3, 0.4, True
    rules.stringClassLabels.vector.extend(LABELS)
    inputs = [
        (spec.description.input[0].name, types.Array(1, 3, 8, 8)),
        ("iouThreshold", types.Double()),
        ("confidenceThreshold", types.Double()),
    ]
    whole = ct.models.pipeline.Pipeline(inputs, ["confidence", "coordinates"])
    whole.add_model(spec)
    whole.add_model(last)
    whole.spec.specificationVersion = spec.specificationVersion
    whole.spec.description.input[0].CopyFrom(spec.description.input[0])
    for place in range(2):
        whole.spec.description.output[place].CopyFrom(last.description.output[place])
    return ct.models.MLModel(whole.spec, weights_dir=stage.weights_dir, skip_model_load=True)


def specification(package, ct):
    """Without texts and the mark that thresholds may be left out, which `Pipeline` does not set."""
    spec = ct.utils.load_spec(str(package / "Data/com.apple.CoreML/model.mlmodel"))
    for description in (spec.description, *(stage.description for stage in spec.pipeline.models)):
        description.metadata.Clear()
        for entry in (*description.input, *description.output):
            entry.shortDescription, entry.type.isOptional = "", False
    return spec


def test_the_interface_is_theirs(both, ct):
    first, second = (specification(package, ct) for package in both)
    assert first.specificationVersion == second.specificationVersion
    assert first.description == second.description
    assert len(first.pipeline.models) == len(second.pipeline.models) == 2
    assert first.pipeline.models[1] == second.pipeline.models[1]
    stages = [spec.pipeline.models[0] for spec in (first, second)]
    assert stages[0].description == stages[1].description
    assert stages[0].specificationVersion == stages[1].specificationVersion


def test_the_same_boxes(both):
    first, second = (open_runner(package, host="reference") for package in both)
    kept = set()
    for seed in range(4):
        image = np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)
        want, have = first([image]), second([image])
        for name in ("confidence", "coordinates"):
            np.testing.assert_allclose(want[name], have[name], atol=2e-3)
        kept.add(len(have["confidence"]))
    assert max(kept) > 0 and max(kept) < 16
