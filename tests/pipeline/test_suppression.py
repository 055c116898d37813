"""Detectors: boxes and scores in, boxes that are kept out of the saved pipeline; a naive suppression in numpy
is the judge."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill import convert, inspect, open_runner, validate
from cidermill.converters.coreml import write
from cidermill.models.errors import UserError
from cidermill.pipeline.commands.cli import convert as convert_command
from cidermill.pipeline.suppression import SuppressionOption, parse_suppression

README = Path(__file__).resolve().parents[2] / "README.md"
CLASSES, BOXES = 3, 16
LABELS = ["cat", "dog", "cow"]
IMAGE = torch.zeros(1, 3, 8, 8)


class Detector(torch.nn.Module):
    """A head as YOLO has it. batch: whether its outputs have a batch; form: of its boxes; logits: whether its
    scores have no sigmoid."""

    def __init__(self, batch=True, form="centres", logits=False, classes=CLASSES):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, classes + 4, 2, stride=2)
        self.batch, self.form, self.logits, self.classes = batch, form, logits, classes

    def forward(self, image):
        cells = (self.conv(image) * 3).flatten(2).transpose(1, 2)
        cells = cells if self.batch else cells[0]
        scores, raw = cells[..., : self.classes], cells[..., self.classes :].sigmoid()
        centres, sizes = raw[..., :2] * 0.4 + 0.3, raw[..., 2:] * 0.2 + 0.2
        boxes = {
            "centres": torch.cat([centres, sizes], -1),
            "corners": torch.cat([centres - sizes / 2, centres + sizes / 2], -1),
            "pixels": torch.cat([centres, sizes], -1) * 640,
            "negative": torch.cat([centres, -sizes], -1),
        }[self.form]
        return {"boxes": boxes, "scores": scores if self.logits else scores.sigmoid(), "cells": cells}


def overlap(a, b):
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def suppressed(scores, boxes, iou, least):
    """Within each class, the most confident first."""
    order = [row for row in np.argsort(-scores.max(1), kind="stable") if scores[row].max() >= least]
    kept = []
    for row in order:
        rivals = [one for one in kept if scores[one].argmax() == scores[row].argmax()]
        if all(overlap(boxes[one], boxes[row]) <= iou for one in rivals):
            kept.append(row)
    return kept


def made(model, out, **options):
    options = {"nms": "boxes,scores", "labels": LABELS, **options}
    return convert(model.eval(), (IMAGE,), out=out, cache=False, **options)


def package_in(folder):
    (package,) = folder.glob("*.mlpackage")
    return package


def pictures(count):
    return np.random.default_rng(1).standard_normal((count, 1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    return made(Detector(), out, quant="float32"), package_in(out)


def test_the_pipeline_keeps_what_a_naive_suppression_keeps(detector):
    report, package = detector
    assert report.verdict == "pass" and report.artifacts[0].warnings == ()
    runner, model, counts = open_runner(package, host="reference"), Detector().eval(), set()
    assert [value.name for value in runner.inputs] == ["image", "iouThreshold", "confidenceThreshold"]
    for image, (iou, least) in zip(pictures(4), [(0.45, 0.25), (0.2, 0.25), (0.45, 0.6), (1.0, 0.0)]):
        with torch.no_grad():
            answer = model(torch.from_numpy(image))
        scores, boxes = (answer[name][0].double().numpy() for name in ("scores", "boxes"))
        kept = suppressed(scores, boxes, iou, least)
        given = {} if (iou, least) == (0.45, 0.25) else {"iouThreshold": iou, "confidenceThreshold": least}
        found = runner({"image": image, **given})
        assert list(found) == ["confidence", "coordinates"]
        np.testing.assert_allclose(found["confidence"], scores[kept], atol=1e-5)
        np.testing.assert_allclose(found["coordinates"], boxes[kept], atol=1e-5)
        counts.add(len(kept))
    assert BOXES in counts and min(counts) <= 8  # nothing is suppressed, and much


def test_pictures_in_and_objects_out(tmp_path, ct):
    """As Vision calls a detector: with a picture alone."""
    from PIL import Image

    report = made(Detector(), tmp_path / "out", quant="float32", image=["image:unit"])
    assert report.verdict == "pass"
    package = package_in(tmp_path / "out")
    spec = ct.utils.load_spec(str(package / "Data/com.apple.CoreML/model.mlmodel"))
    described = spec.description
    assert [entry.type.WhichOneof("Type") for entry in described.input] == [
        "imageType",
        "doubleType",
        "doubleType",
    ]
    assert [entry.type.isOptional for entry in described.input] == [False, True, True]
    assert described.metadata.userDefined["com.apple.coreml.model.preview.type"] == "objectDetector"
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        answer = Detector().eval()(torch.from_numpy(pixels.transpose(2, 0, 1)[None] / np.float32(255)))
    scores, boxes = (answer[name][0].double().numpy() for name in ("scores", "boxes"))
    kept = suppressed(scores, boxes, 0.45, 0.25)
    found = open_runner(package, host="reference")({"image": Image.fromarray(pixels)})
    np.testing.assert_allclose(found["confidence"], scores[kept], atol=1e-4)
    np.testing.assert_allclose(found["coordinates"], boxes[kept], atol=1e-4)
    assert 0 < len(kept) < BOXES


def test_the_report_says_what_was_done(detector):
    report, package = detector
    told = report.artifacts[0].detector
    assert (told.boxes, told.classes, told.labels) == (BOXES, CLASSES, 3)
    assert (told.iou, told.confidence, told.scores, told.left_out) == (0.45, 0.25, "kept", ("cells",))
    errors = report.artifacts[0].validation.conversion
    assert [(error.output, error.shape) for error in errors] == [
        ("raw_confidence", (BOXES, CLASSES)),
        ("raw_coordinates", (BOXES, 4)),
    ]
    page = (package.parent / "report.html").read_text()
    assert "16 boxes of 3 classes enter the suppression (iou 0.45, confidence 0.25)" in page
    assert "cells is left out" in page


def test_inspect_shows_the_stages_and_labels(detector):
    inspection = inspect(detector[1])
    assert inspection.classes == ("cat", "dog", "cow")
    assert [stage.type for stage in inspection.stages] == ["mlProgram", "nonMaximumSuppression"]
    assert inspection.metadata["cidermill.recipe"] == "float32"
    assert [value.name for value in inspection.outputs] == ["confidence", "coordinates"]


@pytest.mark.parametrize("sizes", ["1x3x8,16x8,16", "1x3x8x8..16@8"])
def test_a_detector_of_several_sizes(tmp_path, sizes):
    report = convert(
        Detector().eval(), None, input=[f"image:{sizes}"], nms="boxes,scores", labels=LABELS, quant="float32",
        out=tmp_path / "out", cache=False,
    )  # fmt: skip
    assert report.verdict == "pass"
    runner, kept = open_runner(package_in(tmp_path / "out"), host="reference"), []
    for shape in ((1, 3, 8, 8), (1, 3, 16 if "8,16x" in sizes else 8, 16)):
        image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            answer = Detector().eval()(torch.from_numpy(image))
        scores, boxes = (answer[name][0].double().numpy() for name in ("scores", "boxes"))
        kept.append(suppressed(scores, boxes, 0.45, 0.25))
        found = runner({"image": image})
        np.testing.assert_allclose(found["confidence"], scores[kept[-1]], atol=1e-5)
        np.testing.assert_allclose(found["coordinates"], boxes[kept[-1]], atol=1e-5)
    assert max(kept[1]) > max(kept[0]) > 4  # boxes that the usual size has not
    assert validate(package_in(tmp_path / "out"), Detector().eval(), (IMAGE,)).verdict == "pass"


@pytest.mark.parametrize("quant", ["float16", "int8", "palettize4"])
def test_recipes(tmp_path, quant):
    report = made(Detector(), tmp_path / "out", quant=quant)
    assert report.verdict == "pass" and report.artifacts[0].size_bytes > 0
    assert report.artifacts[0].compression.verdict == "pass"


def test_the_same_bytes_every_time(tmp_path):
    first, second = (made(Detector(), tmp_path / name).artifacts[0] for name in ("one", "two"))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("target", ["iOS15", "iOS26"])
def test_every_deployment_target(tmp_path, target):
    assert made(Detector(batch=False), tmp_path / "out", deployment_target=target).verdict == "pass"


@pytest.mark.parametrize(("extra", "scores"), [(0, "sigmoid added"), (1, "softmax added")])
def test_logits_become_confidence(tmp_path, extra, scores):
    model = Detector(logits=True, classes=CLASSES + extra)
    report = made(model, tmp_path / "out", quant="float32")
    told = report.artifacts[0].detector
    assert report.verdict == "pass" and (told.scores, told.background) == (scores, bool(extra))
    image = pictures(1)[0]
    with torch.no_grad():
        answer = model(torch.from_numpy(image))
    logits = answer["scores"][0].double().numpy()
    powers = np.exp(logits)
    want = (powers / powers.sum(-1, keepdims=True))[:, :CLASSES] if extra else powers / (1 + powers)
    kept = suppressed(want, answer["boxes"][0].double().numpy(), 0.45, 0.25)
    found = open_runner(package_in(tmp_path / "out"), host="reference")({"image": image})
    np.testing.assert_allclose(found["confidence"], want[kept], atol=1e-5)
    comparison = validate(package_in(tmp_path / "out"), model, (IMAGE,))
    assert comparison.verdict == "pass" and any(
        "Compared are scores behind a" in text for text in comparison.warnings
    )
    with torch.no_grad():
        model.conv.bias += 0.3
    assert validate(package_in(tmp_path / "out"), model, (IMAGE,)).verdict == "fail"


def test_scores_of_one_class_more_than_labels_lose_the_last(tmp_path):
    report = made(Detector(classes=CLASSES + 1), tmp_path / "out")
    assert report.verdict == "pass"
    assert (report.artifacts[0].detector.scores, report.artifacts[0].detector.background) == ("kept", True)
    assert (
        open_runner(package_in(tmp_path / "out"), host="reference")({"image": IMAGE})["confidence"].shape[1]
        == 3
    )


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("centres", None),
        ("corners", "the last two numbers are larger than the first two, as of corners"),
        ("pixels", "most are beyond the picture"),
        ("negative", "widths or heights are negative"),
    ],
)
def test_boxes_of_another_form_are_noticed(tmp_path, form, words):
    warnings = made(Detector(form=form), tmp_path / "out").artifacts[0].warnings
    assert warnings == () if words is None else any(words in text for text in warnings)
    if words:
        assert any("divided by the picture's" in text for text in warnings)


def test_a_detector_without_labels_and_with_whole_numbers(tmp_path, ct):
    assert made(Detector(), tmp_path / "without", labels=None).verdict == "pass"
    assert not inspect(package_in(tmp_path / "without")).classes
    assert made(Detector(), tmp_path / "whole", labels=[5, 7, 11]).verdict == "pass"
    assert inspect(package_in(tmp_path / "whole")).classes == (5, 7, 11)


def test_another_target_gives_all_boxes(tmp_path):
    report = made(Detector(), tmp_path / "out", target=["coreml", "executorch-mps"])
    assert report.verdict == "pass"
    assert "ExecuTorch MPS has no suppression" in " ".join(report.artifacts[1].warnings)
    assert not report.artifacts[1].detector


def test_other_names_for_what_enters(tmp_path):
    report = made(
        Detector(), tmp_path / "out", name={"boxes": "places", "image": "picture"},
        metadata={"describe": {"picture": "A square", "confidence": "Sure?", "iouThreshold": "Overlap"}},
    )  # fmt: skip
    assert report.verdict == "pass"
    inspection = inspect(package_in(tmp_path / "out"))
    assert inspection.stages[0].outputs == ("raw_confidence", "places")
    described = {key: text for key, text in inspection.metadata.items() if key.startswith("describe.")}
    assert described["describe.picture"] == "A square" and described["describe.confidence"] == "Sure?"
    assert described["describe.iouThreshold"] == "Overlap"
    assert described["describe.coordinates"].startswith("Boxes × [centre x")


@pytest.mark.parametrize("change", ["labels", "threshold"])
def test_a_wrong_suppression_in_the_file_fails(tmp_path, monkeypatch, change):
    right = write.with_suppression

    def wrong(specification, detector, texts):
        whole = right(specification, detector, texts)
        rules = whole.pipeline.models[1].nonMaximumSuppression
        if change == "labels":
            rules.stringClassLabels.vector[:] = LABELS[::-1]
        else:
            rules.iouThreshold = 0.9
        return whole

    monkeypatch.setattr(write, "with_suppression", wrong)
    report = made(Detector(), tmp_path / "out")
    assert report.verdict == "fail"
    words = (
        "its class 0 is 'cow' instead of 'cat'" if change == "labels" else "its thresholds are (0.9, 0.25)"
    )
    assert any(words in text for text in report.artifacts[0].warnings)


def command(model, out, options, code=0):
    result = CliRunner().invoke(
        convert_command, [str(model), "--out", str(out), "--no-cache", *shlex.split(options)]
    )
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def yolos(tmp_path_factory):
    """A folder of transformers: logits with a class for no object, boxes by their centres."""
    import transformers

    path = tmp_path_factory.mktemp("hub") / "yolos-folder"
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=8, num_detection_tokens=9, initializer_range=0.3, label2id={"cat": 1, "N/A": 2},
        id2label=dict(enumerate(["N/A", "cat", "N/A"])),
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(path)
    return path


def test_a_detector_of_transformers(yolos, tmp_path):
    told = command(yolos, tmp_path / "out", "--nms pred_boxes,logits --labels auto --quant int8")
    assert (
        "9 boxes of 3 classes enter the suppression" in told and "a softmax was added to the scores" in told
    )
    assert "their last class, no object, was left out" in told and "calls several classes 'N/A'" in told
    package = package_in(tmp_path / "out")
    assert inspect(package).classes == ("N/A (0)", "cat", "N/A (2)")
    assert validate(package, yolos, tolerance=30).verdict == "pass"


def test_without_labels_the_configuration_counts_the_classes(yolos, tmp_path):
    command(yolos, tmp_path / "out", "--nms pred_boxes,logits")
    report = json.loads((tmp_path / "out/report.json").read_text())
    detector = report["artifacts"][0]["detector"]
    assert (detector["classes"], detector["labels"], detector["background"]) == (3, 0, True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")

    class Wrong(Detector):
        def forward(self, image):
            answer = super().forward(image)
            return {
                **answer, "turned": answer["boxes"].transpose(1, 2), "fewer": answer["boxes"][:, :5],
                "flat": answer["scores"].flatten(1), "whole": answer["boxes"].long(),
                "two": torch.cat([answer["boxes"]] * 2),
            }  # fmt: skip

    class Named(Detector):
        def forward(self, image, confidence):
            return super().forward(image + confidence)

    torch.export.save(torch.export.export(Wrong().eval(), (IMAGE,)), path / "net.pt2")
    torch.export.save(torch.export.export(Named().eval(), (IMAGE, torch.zeros(1))), path / "named.pt2")
    (path / "two.txt").write_text("cat\n")
    (path / "three.txt").write_text("\n".join(LABELS))
    return path


REFUSED = {
    "one name": ("boxes", "does not name two outputs"),
    "three names": ("boxes,scores,cells", "does not name two outputs"),
    "one name twice": ("boxes,boxes", "does not name two outputs"),
    "an empty name": ("boxes,", "does not name two outputs"),
    "an unknown output": ("boxes,logits", "no output 'logits'", "boxes [1, 16, 4], scores [1, 16, 3]"),
    "iou beyond 1": ("boxes,scores:iou=1.5", "iou is '1.5', not a number from 0 to 1"),
    "iou below 0": ("boxes,scores:iou=-0.1", "iou is '-0.1'"),
    "no number": ("boxes,scores:iou=much", "iou is 'much'"),
    "not a number": ("boxes,scores:confidence=nan", "confidence is 'nan'"),
    "another setting": ("boxes,scores:top=5", "'top=5' is no setting of a suppression"),
    "no value": ("boxes,scores:iou", "'iou' is no setting"),
    "given twice": ("boxes,scores:iou=0.1:iou=0.2", "iou is given twice"),
    "the other way round": ("scores,boxes", "scores [1, 16, 3], boxes [1, 16, 4]", "4 numbers for each"),
    "boxes across": ("turned,scores", "turned [1, 4, 16], scores [1, 16, 3]"),
    "fewer boxes": ("fewer,scores", "fewer [1, 5, 4], scores [1, 16, 3]"),
    "no table": ("boxes,flat", "boxes [1, 16, 4], flat [1, 48]"),
    "whole numbers": ("whole,scores", "are not boxes [1, N, 4]"),
    "two pictures": ("two,scores", "two [2, 16, 4]"),
    "another number of labels": ("boxes,scores --labels two.txt", "has 1 label, the scores scores have 3"),
    "labels of another output": ("boxes,scores --labels three.txt:boxes", "those of its scores, scores"),
    "no place for it": ("boxes,scores --target executorch-mps", "an ExecuTorch program cannot end in it"),
    "a name that is used": ("boxes,scores --name boxes=image", "called 'image' already"),
    "a name of the pipeline": ("boxes,scores --name boxes=confidence", "called 'confidence' already"),
}  # fmt: skip


@pytest.mark.parametrize(("option", "words"), [(row[0], row[1:]) for row in REFUSED.values()], ids=REFUSED)
def test_bad_input_is_one_message_and_nothing_is_written(models, tmp_path, monkeypatch, option, words):
    monkeypatch.chdir(models)
    told = command("net.pt2", tmp_path / "out", f"--nms {option}", code=2)
    assert all(text in told for text in words) and told.count("error:") == 1, told
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_called_like_an_output_of_the_pipeline(models, tmp_path):
    told = command(models / "named.pt2", tmp_path / "out", "--nms boxes,scores", code=2)
    assert "the input 'confidence' is called as what a detector's pipeline has itself" in told
    command(models / "named.pt2", tmp_path / "out", "--nms boxes,scores --name confidence=offset")


def test_a_detector_with_states_is_refused(tmp_path):
    class Tracking(Detector):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1, 32))

        def forward(self, image):
            self.seen.add_(image.mean())
            return super().forward(image + self.seen.mean())

    with pytest.raises(UserError, match=r"keeps states \(seen\), which a pipeline cannot hold"):
        made(Tracking(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_parts_of_the_option():
    assert parse_suppression("a,b") == SuppressionOption("a", "b", 0.45, 0.25)
    assert parse_suppression("a, b:confidence=0:iou=1") == SuppressionOption("a", "b", 1.0, 0.0)
    with pytest.raises(UserError):
        parse_suppression("")


def test_the_readme_shows_both_forms(tmp_path, monkeypatch, yolos):
    lines = [
        line for line in README.read_text().splitlines() if re.match(r"cidermill convert [^ ]+ --nms", line)
    ]
    assert len(lines) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    (tmp_path / "yolos-folder").symlink_to(yolos)
    torch.export.save(torch.export.export(Detector().eval(), (IMAGE,)), "detector.pt")
    for line in lines:
        words = shlex.split(line)
        command(words[2], tmp_path / "out" / words[2], shlex.join(words[3:]))
        assert inspect(package_in(tmp_path / "out" / words[2])).classes
