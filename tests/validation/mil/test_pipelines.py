"""Pipelines and non-maximum suppression in packages that coremltools wrote: torch and a naive loop are the
judges."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cidermill.models.errors import UnreadableArtifact, UserError
from cidermill.pipeline.commands.cli import main
from cidermill.validation import open_runner
from cidermill.validation.graph import OperatorFailed
from cidermill.validation.mil.files import coreml_protos

SIDE, BOXES, CLASSES = 8, 16, 3
MODEL = "Data/com.apple.CoreML/model.mlmodel"


class Detector(torch.nn.Module):
    """Pictures [1, 3, 8, 8] -> confidence [16, 3] within 0 and 1, coordinates [16, 4] that overlap a lot."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, CLASSES + 4, 2, stride=2)

    def forward(self, image):
        cells = (self.conv(image / 255) * 3).flatten(2)[0].transpose(0, 1)
        return torch.sigmoid(cells[:, :CLASSES]), torch.sigmoid(cells[:, CLASSES:]) * 0.5 + 0.25


class Double(torch.nn.Module):
    def forward(self, x):
        return x * 2.0 + 1.0


def picture(seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def as_input(pixels):
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))


def expected(pixels, iou, confidence, per_class):
    with torch.no_grad():
        scores, boxes = (result.double().numpy() for result in Detector().eval()(as_input(pixels)))
    return suppress_naively(scores, boxes, iou, confidence, per_class)


def overlap(a, b):
    left, right = max(a[0] - a[2] / 2, b[0] - b[2] / 2), min(a[0] + a[2] / 2, b[0] + b[2] / 2)
    top, bottom = max(a[1] - a[3] / 2, b[1] - b[3] / 2), min(a[1] + a[3] / 2, b[1] + b[3] / 2)
    if right <= left or bottom <= top:
        return 0.0
    shared = (right - left) * (bottom - top)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def suppress_naively(scores, boxes, iou, confidence, per_class):
    """The algorithm as NonMaximumSuppression.proto tells it, box by box."""
    waiting = sorted(
        (i for i in range(len(scores)) if max(scores[i]) >= confidence), key=lambda i: -max(scores[i])
    )
    kept = []
    while waiting:
        top = waiting.pop(0)
        kept.append(top)
        waiting = [
            i
            for i in waiting
            if overlap(boxes[top], boxes[i]) <= iou
            or (
                per_class
                and list(scores[i]).index(max(scores[i])) != list(scores[top]).index(max(scores[top]))
            )
        ]
    return scores[kept], boxes[kept]


def suppression(ct, decoder, labels=("cat", "dog", "cow"), iou=0.45, confidence=0.25, per_class=True):
    """A specification as exporters of detectors write it by hand: two arrays in, the same out with any number
    of rows."""
    spec = ct.proto.Model_pb2.Model()
    spec.specificationVersion = 5
    for i in range(2):
        spec.description.input.add().CopyFrom(decoder.description.output[i])
        spec.description.output.add().CopyFrom(decoder.description.output[i])
    for entry, name, width in zip(spec.description.output, ("confidence", "coordinates"), (CLASSES, 4)):
        entry.name = name
        array = entry.type.multiArrayType
        del array.shape[:]
        for low, high in ((0, -1), (width, width)):
            size = array.shapeRange.sizeRanges.add()
            size.lowerBound, size.upperBound = low, high
    rules = spec.nonMaximumSuppression
    rules.confidenceInputFeatureName = spec.description.input[0].name
    rules.coordinatesInputFeatureName = spec.description.input[1].name
    rules.confidenceOutputFeatureName, rules.coordinatesOutputFeatureName = "confidence", "coordinates"
    rules.iouThresholdInputFeatureName = "iouThreshold"
    rules.confidenceThresholdInputFeatureName = "confidenceThreshold"
    rules.iouThreshold, rules.confidenceThreshold, rules.pickTop.perClass = iou, confidence, per_class
    rules.stringClassLabels.vector.extend(labels)
    return spec


@pytest.fixture(scope="session")
def decoder(ct):
    """The detector's first stage: an ML Program that takes a picture."""
    image = ct.ImageType("image", (1, 3, SIDE, SIDE), color_layout=ct.colorlayout.RGB)
    traced = torch.jit.trace(Detector().eval(), torch.zeros(1, 3, SIDE, SIDE))
    model = ct.convert(
        traced,
        inputs=[image],
        outputs=[ct.TensorType("raw_confidence"), ct.TensorType("raw_coordinates")],
        minimum_deployment_target=ct.target.iOS15,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    spec = model.get_spec()
    for entry, width in zip(spec.description.output, (CLASSES, 4)):
        entry.type.multiArrayType.shape[:] = [BOXES, width]
    return spec, model.weights_dir


def pipeline(ct, decoder, **rules):
    spec, weights = decoder
    types = ct.models.datatypes
    names = [("image", types.Array(3, SIDE, SIDE)), ("iouThreshold", types.Double())]
    whole = ct.models.pipeline.Pipeline(
        [*names, ("confidenceThreshold", types.Double())], ["confidence", "coordinates"]
    )
    last = suppression(ct, spec, **rules)
    whole.add_model(spec)
    whole.add_model(last)
    whole.spec.specificationVersion = 6
    whole.spec.description.input[0].CopyFrom(spec.description.input[0])
    for i in range(2):
        whole.spec.description.output[i].CopyFrom(last.description.output[i])
    return ct.models.MLModel(whole.spec, weights_dir=weights, skip_model_load=True)


@pytest.fixture(scope="session")
def saved(ct, decoder, tmp_path_factory):
    """The detector as a package, to be read and to be copied, never to be changed."""
    path = tmp_path_factory.mktemp("pipelines") / "detector.mlpackage"
    pipeline(ct, decoder).save(str(path))
    return path


@pytest.fixture
def changed(saved, tmp_path):
    """changed(change) -> the detector's package with another specification"""

    def change_package(change):
        path = tmp_path / "changed.mlpackage"
        shutil.copytree(saved, path)
        model = coreml_protos()[0].Model()
        model.ParseFromString((path / MODEL).read_bytes())
        change(model)
        (path / MODEL).write_bytes(model.SerializeToString())
        return path

    return change_package


def agree(answer, scores, boxes):
    assert list(answer) == ["confidence", "coordinates"]
    for have, want in zip(answer.values(), (scores, boxes)):
        assert have.dtype == np.float32
        np.testing.assert_allclose(have, want, atol=2e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per_class", [True, False])
def test_a_detector_answers_as_torch_and_a_loop_do(ct, decoder, tmp_path, per_class, seed):
    pipeline(ct, decoder, per_class=per_class).save(str(tmp_path / "d.mlpackage"))
    runner = open_runner(tmp_path / "d.mlpackage", host="reference")
    for thresholds in ({}, {"iouThreshold": 0.2}, {"iouThreshold": 0.7, "confidenceThreshold": 0.5}):
        answer = runner({"image": Image.fromarray(picture(seed)), **thresholds})
        limits = thresholds.get("iouThreshold", 0.45), thresholds.get("confidenceThreshold", 0.25)
        want = expected(picture(seed), *limits, per_class)
        assert 0 < len(want[0]) < BOXES
        agree(answer, *want)


def test_what_a_detector_takes_and_gives(saved):
    runner = open_runner(saved, host="reference")
    assert [(value.name, value.dtype, value.shape) for value in runner.inputs] == [
        ("image", "float32", (1, 3, SIDE, SIDE)),
        ("iouThreshold", "float64", ()),
        ("confidenceThreshold", "float64", ()),
    ]
    assert [(value.name, value.shape) for value in runner.outputs] == [
        ("confidence", (None, CLASSES)),
        ("coordinates", (None, 4)),
    ]
    with pytest.raises(
        UserError, match=r"takes 3 inputs, 2 were given\nit takes image: .*\(a picture, RGB\)"
    ):
        runner([Image.fromarray(picture()), 0.5])
    agree(runner([Image.fromarray(picture())]), *expected(picture(), 0.45, 0.25, True))


def test_nothing_is_confident_enough(saved):
    answer = open_runner(saved, host="reference")(
        {"image": Image.fromarray(picture()), "confidenceThreshold": 1.0}
    )
    assert [array.shape for array in answer.values()] == [(0, CLASSES), (0, 4)]


@pytest.mark.parametrize(
    "thresholds, message",
    [
        ({"iouThreshold": 1.5}, "its threshold of overlap is 1.5, which is not within 0 and 1"),
        ({"iouThreshold": float("nan")}, "its threshold of overlap is nan"),
        ({"confidenceThreshold": -1.0}, "its threshold of confidence is -1, which must not be below 0"),
    ],
)
def test_thresholds_that_cannot_be(saved, thresholds, message):
    with pytest.raises(OperatorFailed, match=re.escape(message)):
        open_runner(saved, host="reference")({"image": Image.fromarray(picture()), **thresholds})


# The rules of suppression


@pytest.mark.parametrize("seed", range(12))
def test_suppression_against_a_loop(seed):
    from cidermill.validation.mil.ops.suppression import suppress

    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(0, 60)), int(rng.integers(1, 5))
    scores = rng.random((count, classes)).round(int(rng.integers(1, 4)))  # with ties
    boxes = rng.random((count, 4)) * [1, 1, 0.6, 0.6]
    boxes[::7, 2] = 0  # without an area
    iou, least, per_class = rng.choice([0.0, 0.3, 1.0]), rng.choice([0.0, 0.5, 2.0]), bool(seed % 2)
    want = suppress_naively(scores, boxes, iou, least, per_class)
    most = -1 if seed % 3 else 4
    have = suppress(*map(torch.from_numpy, (scores, boxes)), iou, least, per_class, 0, most)
    for one, other in zip(have, want):
        np.testing.assert_array_equal(one.numpy(), other if most < 0 else other[:most])


def test_boxes_that_are_equal_do_not_suppress_each_other_at_a_threshold_of_one():
    from cidermill.validation.mil.ops.suppression import suppress

    scores, boxes = torch.tensor([[0.5], [0.75]]), torch.tensor([[0.5, 0.5, 0.3, 0.7]] * 2)
    assert suppress(scores, boxes, 1.0, 0.0, True, 0, -1)[0].tolist() == [[0.75], [0.5]]
    assert suppress(scores, boxes, 0.99, 0.0, True, 0, -1)[0].tolist() == [[0.75]]
    assert suppress(scores, boxes, 0.99, 0.6, True, 3, -1)[0].tolist() == [[0.75], [0.0], [0.0]]


@pytest.mark.parametrize("rows", [2, BOXES])
def test_outputs_of_a_fixed_number_of_boxes(changed, rows):
    """Fewer boxes are filled up with zeros, more are cut off."""

    def pin(model):
        for description in (model.description, model.pipeline.models[1].description):
            for entry, width in zip(description.output, (CLASSES, 4)):
                entry.type.multiArrayType.ClearField("shapeRange")
                entry.type.multiArrayType.shape[:] = [rows, width]

    runner = open_runner(changed(pin), host="reference")
    assert runner.outputs[0].shape == (rows, CLASSES)
    want = [np.zeros((rows, CLASSES)), np.zeros((rows, 4))]
    for array, kept in zip(want, expected(picture(), 0.45, 0.25, True)):
        array[: len(kept)] = kept[:rows]
    agree(runner([Image.fromarray(picture())]), *want)


# Pipelines of programs


def program(ct, module, *examples, inputs=None, outputs=None, **options):
    traced = torch.jit.trace(module.eval(), examples)
    return ct.convert(
        traced,
        inputs=inputs or [ct.TensorType("x", example.shape) for example in examples],
        outputs=[ct.TensorType(name) for name in outputs or ["y"]],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        compute_units=ct.ComputeUnit.CPU_ONLY,
        skip_model_load=True,
        **options,
    )


class Layers(torch.nn.Module):
    """Large enough that its weights lie in the weight file."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))

    def forward(self, x):
        return self.layers(x)


def test_programs_in_a_row_with_a_weight_file_each(ct, tmp_path):
    """All of their values have the same names, of which each program means its own."""
    modules, x = [Layers(seed).eval() for seed in range(3)], torch.randn(2, 64)
    names = ["x", "y", "z", "x_out"]
    models = [
        program(ct, module, x, inputs=[ct.TensorType(names[i], x.shape)], outputs=[names[i + 1]])
        for i, module in enumerate(modules)
    ]
    whole = ct.utils.make_pipeline(*models)
    whole.save(str(tmp_path / "p.mlpackage"))
    runner = open_runner(tmp_path / "p.mlpackage", host="reference")
    assert len(runner.package.weights) == 3
    assert [stage.name for stage in runner.package.stages] == ["model0", "model1", "model2"]
    with torch.no_grad():
        want = modules[2](modules[1](modules[0](x)))
    (have,) = runner([x]).values()
    np.testing.assert_allclose(have, want, atol=1e-5)


def package(ct, stages, inputs, outputs, path, kind="pipeline"):
    """A pipeline by hand. inputs, outputs: (stage, its entry) of each"""
    spec = ct.proto.Model_pb2.Model()
    spec.specificationVersion = 7
    specs = [stage if not hasattr(stage, "get_spec") else stage.get_spec() for stage in stages]
    chain = spec.pipeline if kind == "pipeline" else getattr(spec, kind).pipeline
    for stage in specs:
        chain.models.add().CopyFrom(stage)
    for place, index in inputs:
        spec.description.input.add().CopyFrom(specs[place].description.input[index])
    for place, index in outputs:
        spec.description.output.add().CopyFrom(specs[place].description.output[index])
    path.mkdir()
    (path / "Data/com.apple.CoreML").mkdir(parents=True)
    (path / MODEL).write_bytes(spec.SerializeToString())
    entry = {"path": "com.apple.CoreML/model.mlmodel", "name": "model.mlmodel", "author": "com.apple.CoreML"}
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": {"m": entry}, "rootModelIdentifier": "m"}
    (path / "Manifest.json").write_text(json.dumps(manifest))
    return path


def test_the_latest_feature_of_a_name_counts(ct, tmp_path):
    """x -> y = 2x + 1 -> x' = 2y + 1 under the name of y -> 2x' + 1"""
    x = torch.tensor([[1.0, -2.0, 0.5]])
    first = program(ct, Double(), x)
    again = program(ct, Double(), x, inputs=[ct.TensorType("y", x.shape)], outputs=["y2"]).get_spec()
    ct.utils.rename_feature(again, "y2", "z")
    last = program(ct, Double(), x, inputs=[ct.TensorType("z", x.shape)], outputs=["y"])
    path = package(ct, [first, again, last], [(0, 0)], [(2, 0)], tmp_path / "p.mlpackage")
    answer = open_runner(path, host="reference")([x])
    assert list(answer) == ["y"] and answer["y"].tolist() == [[15.0, -9.0, 11.0]]


def test_pipelines_inside_pipelines(ct, tmp_path):
    x = torch.tensor([[1.0, -2.0, 0.5]])
    first = program(ct, Double(), x)
    last = program(ct, Double(), x, inputs=[ct.TensorType("y", x.shape)], outputs=["z"])
    inner = ct.utils.make_pipeline(first, last).get_spec()
    path = package(ct, [inner], [(0, 0)], [(0, 0)], tmp_path / "p.mlpackage", "pipelineRegressor")
    assert open_runner(path, host="reference")([x])["z"].tolist() == [[7.0, -5.0, 5.0]]


def test_a_pipeline_that_classifies(ct, tmp_path):
    x = torch.tensor([[1.0, -2.0, 0.5]])
    first = program(ct, Double(), x)
    config = ct.ClassifierConfig(["a", "b", "c"], predicted_feature_name="label")
    softmax = torch.nn.Softmax(-1)
    last = program(
        ct, softmax, x, inputs=[ct.TensorType("y", x.shape)], outputs=["p"], classifier_config=config
    )
    outputs = [(1, index) for index in range(2)]
    path = package(ct, [first, last], [(0, 0)], outputs, tmp_path / "p.mlpackage", "pipelineClassifier")
    answer = open_runner(path, host="reference")([x])
    assert answer["label"] == "a" and len(answer) == 2
    (scores,) = (value for name, value in answer.items() if name != "label")
    assert list(scores) == ["a", "b", "c"]
    np.testing.assert_allclose(list(scores.values()), torch.softmax(2 * x + 1, -1)[0], atol=1e-6)


def test_suppression_by_itself(ct, decoder, tmp_path):
    spec = suppression(ct, decoder[0])
    path = package(ct, [spec], [(0, 0), (0, 1)], [(0, 0), (0, 1)], tmp_path / "p.mlpackage")
    with torch.no_grad():
        scores, boxes = (result.numpy() for result in Detector().eval()(as_input(picture())))
    runner = open_runner(path, host="reference")
    assert [value.name for value in runner.inputs] == ["raw_confidence", "raw_coordinates"]
    agree(runner([scores, boxes]), *expected(picture(), 0.45, 0.25, True))
    alone = coreml_protos()[0].Model()
    alone.ParseFromString(spec.SerializeToString())
    (path / MODEL).write_bytes(alone.SerializeToString())
    agree(open_runner(path, host="reference")([scores, boxes]), *expected(picture(), 0.45, 0.25, True))


# What Core ML would refuse, and what is not read


def rules_of(model):
    return model.pipeline.models[1].nonMaximumSuppression


def without_outputs(model):
    del model.pipeline.models[0].description.output[:]


def missing_feature(model):
    del model.description.input[0]


def unknown_output(model):
    model.description.output[0].name = "nobody"


def twice(model):
    model.description.input.add().CopyFrom(model.description.input[0])


def empty(model):
    del model.pipeline.models[:]


def nothing_given(model):
    del model.description.output[:]


def other_picture(model):
    model.description.input[0].type.imageType.colorSpace = 30


def other_size(model):
    model.description.input[0].type.imageType.width = 9


def array_for_picture(model):
    model.description.input[0].type.multiArrayType.shape.extend([3, 8, 8])


def fewer_coordinates(model):
    for description in (
        model.pipeline.models[0].description.output,
        model.pipeline.models[1].description.input,
    ):
        description[1].type.multiArrayType.shape[:] = [7, 4]


def half_precision(model):
    for stage in model.pipeline.models:
        for entry in [*stage.description.output, *stage.description.input]:
            if entry.type.WhichOneof("Type") == "multiArrayType":
                entry.type.multiArrayType.dataType = 65552
    for entry in model.description.output:
        entry.type.multiArrayType.dataType = 65552


def swapped(model):
    rules = rules_of(model)
    rules.confidenceInputFeatureName, rules.coordinatesInputFeatureName = "raw_coordinates", "raw_confidence"


def other_names(model):
    rules_of(model).confidenceInputFeatureName = "scores"


def one_name(model):
    rules_of(model).coordinatesInputFeatureName = rules_of(model).confidenceInputFeatureName


def too_few_labels(model):
    del rules_of(model).stringClassLabels.vector[1:]


def negative(model):
    rules_of(model).confidenceThreshold = -0.5


def above_one(model):
    rules_of(model).iouThreshold = 1.25


def not_a_number(model):
    rules_of(model).iouThreshold = float("nan")


def two_numbers_of_rows(model):
    for description in (model.description, model.pipeline.models[1].description):
        description.output[1].type.multiArrayType.shapeRange.sizeRanges[0].upperBound = 5


def threshold_of_another_type(model):
    model.description.input[1].type.int64Type.SetInParent()


def scaler(model):
    model.pipeline.models[1].scaler.SetInParent()


def network(model):
    model.pipeline.models[0].neuralNetwork.SetInParent()


def no_model(model):
    model.pipeline.models[1].ClearField("nonMaximumSuppression")


def no_program(model):
    model.pipeline.models[0].mlProgram.ClearField("functions")


REFUSALS = {
    without_outputs: "it has stage model0 (mlProgram), which gives nothing",
    missing_feature: "its stage model0 (mlProgram) takes 'image', which neither its inputs nor the stages",
    unknown_output: "it gives 'nobody', which neither its inputs nor the stages before it have",
    twice: "it takes 'image' twice",
    empty: "it has no stages",
    nothing_given: "it gives nothing",
    other_picture: "takes 'image' as RGB [1, 3, 8, 8], the pipeline's input has it as BGR [1, 3, 8, 8]",
    other_size: "takes 'image' as RGB [1, 3, 8, 8], the pipeline's input has it as RGB [1, 3, 8, 9]",
    array_for_picture: "takes 'image' as imageType, the pipeline's input has it as multiArrayType",
    half_precision: "has confidence and coordinates of float16; all of them must be float64 or all float32",
    swapped: "takes 'raw_coordinates' [16, 4] and 'raw_confidence' [16, 3] instead of [boxes, classes] and",
    other_names: "takes 'scores', which its description lacks or has as no multiArrayType",
    one_name: "takes confidence and coordinates under one name, 'raw_confidence'",
    too_few_labels: "has 1 labels for the 3 classes of 'raw_confidence' [16, 3]",
    negative: "has the confidenceThreshold -0.5, which is below 0",
    above_one: "has the iouThreshold 1.25, which is not within 0 and 1",
    not_a_number: "has the iouThreshold nan, which is not within 0 and 1",
    two_numbers_of_rows: "gives confidence and coordinates of different numbers of boxes: [(0, -1), (0, 5)]",
    threshold_of_another_type: "takes its threshold 'iouThreshold' as int64Type, which must be a doubleType",
    scaler: "is a pipeline whose stage model1 is a scaler; only ML Programs, nonMaximumSuppression and",
    network: "is a pipeline whose stage model0 is a neuralNetwork; only ML Programs, nonMaximumSuppression",
    no_model: "is a pipeline whose stage model1 is a model without content; only ML Programs,",
    no_program: "is truncated or corrupt: it holds no program",
}


@pytest.mark.parametrize("change", REFUSALS, ids=lambda change: change.__name__)
def test_odd_pipelines_are_refused_in_words(changed, change):
    with pytest.raises(UnreadableArtifact, match=re.escape(REFUSALS[change])):
        open_runner(changed(change), host="reference")


def test_numbers_of_boxes_that_differ(changed):
    """What the program gives counts, whatever the descriptions around it say."""
    agree(
        open_runner(changed(fewer_coordinates), host="reference")([Image.fromarray(picture())]),
        *expected(picture(), 0.45, 0.25, True),
    )
    from cidermill.validation.mil.ops.suppression import suppress

    with pytest.raises(ValueError, match="it has the confidence of 3 boxes and the coordinates of 2"):
        suppress(torch.zeros(3, 1), torch.zeros(2, 4), 0.5, 0.5, True, 0, -1)


def test_a_threshold_that_nothing_sets_is_the_models_own(changed):
    def change(model):
        del model.description.input[1:]

    runner = open_runner(changed(change), host="reference")
    assert [value.name for value in runner.inputs] == ["image"]
    agree(runner([Image.fromarray(picture())]), *expected(picture(), 0.45, 0.25, True))


# The command line


def test_inspect_shows_stages(saved):
    result = CliRunner().invoke(main, ["inspect", str(saved)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "image: float32 [1, 3, 8, 8] (a picture, RGB), iouThreshold: float64 []" in text
    assert "3 labels, overlap above 0.45" in text
    found = json.loads(CliRunner().invoke(main, ["inspect", str(saved), "--json"]).output)
    assert [stage["type"] for stage in found["stages"]] == ["mlProgram", "nonMaximumSuppression"]
    assert found["stages"][1] == {
        "name": "model1",
        "type": "nonMaximumSuppression",
        "inputs": ["raw_confidence", "raw_coordinates", "iouThreshold", "confidenceThreshold"],
        "outputs": ["confidence", "coordinates"],
        "labels": 3,
        "iou_threshold": 0.45,
        "confidence_threshold": 0.25,
        "per_class": True,
        "classes": ["cat", "dog", "cow"],
    }
    assert found["classes"] == ["cat", "dog", "cow"] and "labels: 3 (cat, dog, cow)" in text
    last = found["placement"]["ops"][-1]
    assert (last["name"], last["type"], last["unit"]) == ("model1", "nonMaximumSuppression", "cpu")
    assert len(found["placement"]["ops"]) > 3 and found["latency"]["devices"][0]["ms"] > 0


def test_inspect_refuses_in_words(changed):
    result = CliRunner().invoke(main, ["inspect", str(changed(scaler))])
    assert result.exit_code == 2 and "is a pipeline whose stage model1 is a scaler" in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def source(tmp_path):
    """source(module) -> the file of an exported program of pictures"""

    def save(module):
        program = torch.export.export(module.eval(), (as_input(picture()),))
        torch.export.save(program, tmp_path / "net.pt2")
        return str(tmp_path / "net.pt2")

    return save


def test_validate_compares_all_boxes(saved, source):
    arguments = ["validate", str(saved), "--against", source(Detector()), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["verdict"] == "pass" and "what enters non-maximum suppression" in found["warnings"][-1]
    errors = found["validation"]["conversion"]
    assert [error["shape"] for error in errors] == [[BOXES, CLASSES], [BOXES, 4]]
    assert all(error["psnr_db"] > 100 for error in errors)


class Other(Detector):
    def forward(self, image):
        confidence, coordinates = super().forward(image)
        return confidence, coordinates * 0.5


def test_validate_notices_other_boxes(saved, source):
    result = CliRunner().invoke(main, ["validate", str(saved), "--against", source(Other()), "--json"])
    assert result.exit_code == 1, result.output
    first, second = json.loads(result.output)["validation"]["conversion"]
    assert first["psnr_db"] > 100 and second["psnr_db"] < 40


class Third(Detector):
    def forward(self, image):
        return super().forward(image)[0]


def test_validate_says_that_outputs_differ(saved, source):
    result = CliRunner().invoke(main, ["validate", str(saved), "--against", source(Third())])
    assert (
        result.exit_code == 2 and "returns 2 outputs (confidence, coordinates), the model 1" in result.output
    )


def test_validate_refuses_in_words(changed, source):
    result = CliRunner().invoke(
        main, ["validate", str(changed(without_outputs)), "--against", source(Detector())]
    )
    assert result.exit_code == 2 and "is no pipeline that Core ML would run" in result.output
    assert "Traceback" not in result.output
