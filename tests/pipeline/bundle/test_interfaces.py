"""What an app sees of classifiers, detectors, states and sizes in Swift, and bundles that hold them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from cidermill import convert
from cidermill.pipeline.bundle.deliverables import Feature, read_models
from cidermill.pipeline.bundle.swift import swift_files
from cidermill.pipeline.bundle.swift_check import syntax_errors

LABELS = ["tabby cat", 'the "best"', "cow"]


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
        )

    def forward(self, image):
        return self.layers(image)


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 7, 2, stride=2)

    def forward(self, image):
        cells = (self.conv(image) * 3).flatten(2)[0].transpose(0, 1).sigmoid()
        return {"boxes": cells[:, 3:] * 0.4 + 0.2, "scores": cells[:, :3]}


IMAGE = torch.zeros(1, 3, 4, 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """-> the folder of reports: a classifier by two recipes and for two targets, one of whole numbers, a
    detector"""
    folder = tmp_path_factory.mktemp("made")

    def make(name, model, **options):
        convert(model.eval(), (IMAGE,), out=folder / name, cache=False, **options)

    make("half", Classifier(), labels=LABELS, target=["coreml", "executorch-mps"])
    make("int8", Classifier(), labels=LABELS, quant="int8")
    make("whole", Classifier(), labels=[3, 1, 4])
    make("detector", Detector(), labels=LABELS, nms="boxes,scores")
    make("unlabelled", Detector(), nms="boxes,scores")
    return folder


def bundled(cidermill, out, *reports):
    result = cidermill("bundle", *reports, "--out", out, "--name", "App")
    assert result.exit_code == 0, result.output
    verified = cidermill("verify", out, "--run")
    assert verified.exit_code == 0, verified.output
    files = {path.name: path.read_text() for path in (out / "Sources/App").glob("*.swift")}
    for name, text in files.items():
        assert syntax_errors(text.encode(), name) == []
    return files, json.loads((out / "manifest.json").read_text())


def parts_in(text, *parts):
    plain = " ".join(text.split())
    for part in parts:
        assert " ".join(part.split()) in plain, part


def test_a_classifier_returns_its_label_and_probabilities(made, tmp_path, cidermill):
    reports = (f"Net={made / 'half'}", f"Net={made / 'int8'}")
    files, manifest = bundled(cidermill, tmp_path / "App.bundle", *reports)
    parts_in(
        files["Net.swift"],
        "public let classLabel: String",
        "public let classLabel_probs: [String: Double]",
        'classLabel: try ModelSupport.labelString("classLabel", of: answer),',
        'classLabel_probs: try ModelSupport.probabilities("classLabel_probs", of: answer)',
        "public var ranking: [(label: String, probability: Double)]",
        'public static let labels: [String] = [ "tabby cat", "the \\u{22}best\\u{22}", "cow", ]',
    )
    assert "Values: [Float]" not in files["Net.swift"] and "MLState" not in files["Net.swift"]
    (model,) = manifest["models"]
    assert model["labels"] == LABELS and len(model["variants"]) == 3
    (sharing,) = manifest["sharing"] or [None]
    assert sharing is None or sharing["stored"] == "separately"


def test_classifiers_do_not_share_weights_as_functions(made, tmp_path, cidermill):
    """Twice the same weights under other names: coremltools knows no classifiers with several functions."""
    convert(
        Classifier().eval(),
        (IMAGE,),
        labels=LABELS,
        name={"image": "picture"},
        out=tmp_path / "other",
        cache=False,
    )
    _, manifest = bundled(cidermill, tmp_path / "App.bundle", f"A={made / 'half'}", f"B={tmp_path / 'other'}")
    (sharing,) = manifest["sharing"]
    assert sharing["stored"] == "separately" and "no classifiers" in sharing["reason"]


def test_whole_numbers_and_other_labels_are_another_model(made, tmp_path, cidermill):
    files, manifest = bundled(cidermill, tmp_path / "App.bundle", made / "half", made / "whole")
    assert len(manifest["models"]) == 2
    (whole,) = [text for text in files.values() if "public let classLabel: Int64" in text]
    parts_in(
        whole,
        "public let classLabel_probs: [Int64: Double]",
        'try ModelSupport.labelInt64("classLabel", of: answer)',
        "public static let labels: [Int64] = [ 3, 1, 4, ]",
    )


def test_a_detector_returns_what_it_found(made, tmp_path, cidermill):
    files, manifest = bundled(cidermill, tmp_path / "App.bundle", f"Net={made / 'detector'}")
    parts_in(
        files["Net.swift"],
        "public var iouThreshold: Double?",
        "image: [Float], iouThreshold: Double? = nil, confidenceThreshold: Double? = nil) throws",
        'if let value = input.iouThreshold { features["iouThreshold"] = MLFeatureValue(double: value) }',
        "public var detections: [Detection]",
        "public struct Detection: Sendable { public let label: String",
        "label: Net.labels[best],",
        "scores[(row * 3)..<((row + 1) * 3)]",
        "public let confidence: MLMultiArray",
    )
    (model,) = manifest["models"]
    assert [one["name"] for one in model["inputs"]] == ["image", "iouThreshold", "confidenceThreshold"]


def test_a_detector_without_labels_names_classes_by_number(made, tmp_path, cidermill):
    files, _ = bundled(cidermill, tmp_path / "App.bundle", f"Net={made / 'unlabelled'}")
    parts_in(files["Net.swift"], "public let label: Int", "label: best,")
    assert "static let labels" not in files["Net.swift"]


class Listening(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("memory", torch.zeros(1, 32))
        self.hear, self.name = torch.nn.Linear(8, 32), torch.nn.Linear(32, 3)

    def forward(self, x):
        self.memory.mul_(0.9).add_(self.hear(x))
        return self.name(self.memory)


def test_a_bundle_of_a_model_with_states(tmp_path, cidermill):
    convert(Listening().eval(), (torch.zeros(1, 8),), labels=LABELS, out=tmp_path / "out", cache=False)
    files, manifest = bundled(cidermill, tmp_path / "App.bundle", f"Net={tmp_path / 'out'}")
    parts_in(
        files["Net.swift"],
        "makeSession() -> Session",
        "/// memory: float16 [1, 32]",
        "let classLabel: String",
    )
    assert [state["name"] for state in manifest["models"][0]["states"]] == ["memory"]


def test_a_bundle_of_pictures_in_and_out(tmp_path, cidermill):
    class Painter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.mix = torch.nn.Conv2d(3, 3, 1)

        def forward(self, picture):
            return 255 * self.mix(picture).sigmoid()

    options = {"image": ["picture:unit"], "image_output": ["output"]}
    convert(Painter().eval(), (torch.zeros(1, 3, 6, 4),), out=tmp_path / "out", cache=False, **options)
    files, manifest = bundled(cidermill, tmp_path / "App.bundle", f"Net={tmp_path / 'out'}")
    parts_in(
        files["Net.swift"],
        "public init(picture: CVPixelBuffer)",
        "public init(picture: CGImage) throws",
        "width: 4, height: 6, format: kCVPixelFormatType_32BGRA",
        "public let output: CVPixelBuffer",
    )
    assert manifest["models"][0]["outputs"][0]["picture"] == "RGB"


# Borders that the tests' own models do not have


@pytest.fixture
def text_of(made):
    """-> the Swift of the detector's model with other features in it"""

    def make(**changes):
        (model,) = read_models([str(made / "whole")], False)
        model = replace(model, name="net", labels=(), **changes)
        resources = {one.resource: "0" * 64 for one in model.variants}
        text = swift_files("App", [model], resources)["Sources/App/Net.swift"]
        assert syntax_errors(text.encode(), "Net.swift") == []
        return text

    return make


OUTPUT = (Feature("y", "float32", (1, 4)),)


def test_sizes_that_go_together_are_one_enumeration(text_of):
    ids = Feature("ids", "int32", (1, None), shapes=((1, 32), (1, 64)))
    mask = Feature("mask", "float16", (1, None), shapes=((1, 32), (1, 64)))
    image = Feature("image", "float32", (1, 3, None, None), "RGB", ((1, 3, 8, 8), (1, 3, 16, 32)))
    text = text_of(inputs=(ids, mask, image), outputs=OUTPUT)
    parts_in(
        text,
        "public enum Size: CaseIterable, Sendable { case size1x32 case size1x64",
        "public var idsShape: [Int] { switch self { case .size1x32: return [1, 32]",
        "case .size1x64: return [1, 64] } }",
        "case .size1x64: return [1, 3, 16, 32]",
        "(ids: [Int32], mask: [Float], image: CGImage, size: Size = .size1x32) throws",
        'ModelSupport.array(ids, shape: size.idsShape, name: "ids")',
        'ModelSupport.halfArray(mask, shape: size.maskShape, name: "mask")',
        "width: size.imageShape[3], height: size.imageShape[2],",
        "ids: ids, mask: mask, image: image, size: .size1x32))",
    )


def test_sizes_of_other_numbers_are_given_as_shapes(text_of):
    ids = Feature("ids", "int32", (1, None), shapes=((1, 32), (1, 64)))
    mask = Feature("mask", "float32", (1, None), shapes=((1, 32), (1, 64), (1, 96)))
    text = text_of(inputs=(ids, mask), outputs=OUTPUT)
    assert "enum Size" not in text
    parts_in(text, "(ids: [Int32], idsShape: [Int], mask: [Float], maskShape: [Int]) throws")


def test_equal_shapes_of_the_first_input_are_told_apart(text_of):
    """The sizes of the second differ."""
    a = Feature("size", "float32", (1, None), shapes=((1, 2), (1, 2)))
    b = Feature("sizeShape", "float32", (None, 2), shapes=((1, 2), (3, 2)))
    text = text_of(inputs=(a, b), outputs=OUTPUT)
    parts_in(
        text, "case size1x2 case size1x2_2", "size_2: [Float], sizeShape: [Float], size: Size = .size1x2"
    )
    assert len(set(re.findall(r"public var (\w+): \[Int\]", text))) == 2


def test_a_session_keeps_the_state(text_of):
    text = text_of(
        inputs=(Feature("x", "float32", (1, 4)),),
        outputs=OUTPUT,
        states=(Feature("keyCache", "float16", (1, 2, 32, 8)),),
    )
    parts_in(
        text,
        "/// let session = model.makeSession()",
        "/// keyCache: float16 [1, 2, 32, 8] public private(set) var state: MLState",
        "public func makeSession() -> Session",
        "prediction(from: Net.features(of: input), using: state)",
        "public func reset() { state = owner.model.makeState() }",
    )
    assert text.count("func predict(") == 1  # none without a state


def test_pictures_come_out_as_pixel_buffers(text_of):
    text = text_of(
        inputs=(Feature("x", "float32", (1, 4)),), outputs=(Feature("image", "float32", (1, 3, 4, 4), "RGB"),)
    )
    parts_in(
        text,
        "import CoreVideo",
        "public let image: CVPixelBuffer",
        'ModelSupport.picture("image", of: answer)',
    )


def test_states_are_read_from_the_package(ct, tmp_path):
    from cidermill.pipeline.bundle.deliverables import _seen
    from cidermill.pipeline.targets import find_target

    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(1, 4))

        def forward(self, x):
            self.total.add_(x)
            return self.total * 2

    ct.convert(
        torch.jit.trace(Counter().eval(), torch.zeros(1, 4)),
        inputs=[ct.TensorType("x", (1, 4), dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=(1, 4), dtype=np.float16), name="total")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    ).save(str(tmp_path / "a.mlpackage"))
    seen = _seen(tmp_path / "a.mlpackage", find_target("coreml").in_apps)
    assert seen.states == (Feature("total", "float16", (1, 4)),) and seen.systems == ("18.0", "15.0")
    assert [one.name for one in seen.inputs] == ["x"]
