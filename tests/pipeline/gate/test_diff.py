"""`cidermill diff`: what it finds between artifacts and reports whose differences are known, and what it
makes of them for people and machines."""

import json
import shutil

import numpy as np
import pytest
import torch

from cidermill import convert
from cidermill.pipeline.gate.compared import Stored
from cidermill.pipeline.gate.diff import _matched, _operators, _placement
from cidermill.pipeline.gate.diff_tables import sections
from cidermill.pipeline.gate.difference import (
    ArtifactDifference,
    Changes,
    ErrorChange,
    OneSidedWeight,
    OperatorChanges,
    WeightChange,
    WeightChanges,
    WeightForm,
)
from cidermill.pipeline.report.json_files import to_builtins
from cidermill.pipeline.report.records import Placement
from cidermill.validation import open_runner
from cidermill.validation.records import PlacedOperation, UnitShare


@pytest.fixture
def differ(cidermill):
    def run(a, b, *options):
        result = cidermill("diff", a, b, *options, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


SIDES = {"report": "{}/report.json", "folder": "{}", "package": "{}/net.mlpackage", "program": "{}/net.pte"}


@pytest.mark.parametrize("kind", SIDES.values(), ids=SIDES)
def test_nothing_changed_between_equals(differ, pressed, cidermill, kind):
    path = pressed / kind.format("int8")
    found = differ(path, path)
    assert not found["different"] and all(
        not one["changes"] and one["identical_bytes"] for one in found["artifacts"]
    )
    arguments = ("diff", path, path)
    assert cidermill(*arguments, "--exit-code").exit_code == 0
    assert "No difference between" in cidermill(*arguments).stdout
    assert cidermill(*arguments, "--markdown").stdout == ""


@pytest.mark.parametrize("a", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("b", SIDES.values(), ids=SIDES)
def test_any_two_kinds_can_be_compared(differ, pressed, a, b):
    """A report is compared by the artifact of the other's target; the changed network has one operation more
    and other values in one weight."""
    if {a, b} == {SIDES["package"], SIDES["program"]}:
        return
    found = differ(pressed / a.format("int8"), pressed / b.format("changed"))
    single = [kind for kind in (a, b) if kind in (SIDES["package"], SIDES["program"])]
    assert len(found["artifacts"]) == (1 if single else 2) and not found["added"] and not found["removed"]
    for one in found["artifacts"]:
        changes = one["changes"]
        (added,) = changes["operators"]["added"]
        assert added["type"] in ("sigmoid", "MPSSigmoid") and changes["operators"]["removed"] == []
        assert changes["operators"]["counts"] == [{"type": added["type"], "a": 0, "b": 1}]
        (weight,) = changes["weights"]["changed"]
        assert (
            weight["values"] == "differ"
            and weight["a"] == weight["b"]
            and weight["a"]["scheme"] == "int8 per channel"
        )
        assert (
            changes["weights"]["same"] == 3
            and not changes["weights"]["added"]
            and not changes["weights"]["removed"]
        )
        (unit,) = changes["placement"]["units"]
        assert unit["ops"][1] == unit["ops"][0] + 1 and changes["placement"]["moved"] == []
        assert ("error" in changes) == (not single)


def test_the_error_and_the_names_of_reports(differ, pressed):
    package, program = differ(pressed / "int8", pressed / "int4")["artifacts"]
    reports = [
        json.loads((pressed / name / "report.json").read_text())["artifacts"][0] for name in ("int8", "int4")
    ]
    errors = {row["kind"]: (row["a"], row["b"]) for row in package["changes"]["error"]}
    assert errors["compression"] == tuple(one["validation"]["compression"][0]["psnr_db"] for one in reports)
    assert package["size_bytes"] == [one["size_bytes"] for one in reports]
    for one in (package, program):
        assert one["changes"]["recipe"] == {"a": "int8", "b": "int4:block16"}
        assert [row["name"] for row in one["changes"]["weights"]["changed"]] == ["3.weight"], (
            "the source's name, in a .pte too"
        )
    weight = package["changes"]["weights"]["changed"][0]
    assert weight["a"] == {"scheme": "int8 per channel", "bits_per_weight": pytest.approx(8, abs=0.1)}
    assert weight["b"]["scheme"] == "int4 block 16" and weight["values"] == "differ"
    bytes_ = {row["kind"]: row["b"] - row["a"] for row in package["changes"]["bytes"]}
    assert sum(bytes_.values()) == package["size_bytes"][1] - package["size_bytes"][0]


def test_values_are_compared_however_they_are_stored(differ, pressed, tmp_path, cidermill, gate_models):
    """float32 weights that float16 holds exactly: other bits, equal values. An oracle of its own: the
    runners' outputs are close."""
    for recipe in ("float16", "float32"):
        result = cidermill(
            "convert",
            gate_models / "half" / "net.pt2",
            "--quant",
            recipe,
            "--out",
            tmp_path / recipe,
            "--quiet",
        )
        assert result.exit_code == 0, result.output
    for a, b in (("float16", "float32"), ("float16/net.mlpackage", "float32/net.mlpackage")):
        (one,) = differ(tmp_path / a, tmp_path / b)["artifacts"]
        rows = one["changes"]["weights"]["changed"]
        assert len(rows) == 4 and {row["values"] for row in rows} == {"equal"}
        assert {(row["a"]["scheme"], row["b"]["scheme"]) for row in rows} == {("float16", "float32")}
    sample = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    outputs = [
        open_runner(tmp_path / name / "net.mlpackage", host="reference")({"input": sample})["output"]
        for name in ("float16", "float32")
    ]
    assert np.abs(outputs[0] - outputs[1]).max() < 0.01


def test_a_report_without_its_artifact_says_what_it_could_not_compare(differ, outputs):
    shutil.rmtree(outputs / "int8" / "net.mlpackage")
    (one,) = differ(outputs / "int8", outputs / "changed" / "net.mlpackage")["artifacts"]
    assert one["changes"]["weights"]["values"].startswith("not compared: the artifact of")
    assert one["changes"]["operators"]["added"][0]["type"] == "sigmoid"
    same = differ(outputs / "int8", outputs / "int8")
    assert not same["different"], "equal hashes need no look at the files"
    package, program = differ(outputs / "int8", outputs / "changed")["artifacts"]
    assert (
        "not compared" in package["changes"]["weights"]["values"]
        and "values" not in program["changes"]["weights"]
    )


def test_what_only_one_side_has(differ, outputs, edit):
    edit(outputs / "int8" / "report.json", lambda report: report["artifacts"].pop())
    found = differ(outputs / "int8", outputs / "int4")
    assert (
        [name.rpartition("/")[2] for name in found["added"]] == ["net.pte"]
        and found["removed"] == []
        and len(found["artifacts"]) == 1
    )
    assert [name.rpartition("/")[2] for name in differ(outputs / "int4", outputs / "int8")["removed"]] == [
        "net.pte"
    ]


def test_another_interface(differ, outputs, edit):
    def change(report):
        report["source"]["inputs"][0]["shape"] = [1, 3, 16, 16]
        report["source"]["outputs"][0]["name"] = "logits"

    edit(outputs / "changed" / "report.json", change)
    rows = differ(outputs / "int8", outputs / "changed")["artifacts"][0]["changes"]["interface"]
    assert rows == [
        {"kind": "inputs", "name": "input", "a": "float32 1x3x8x8", "b": "float32 1x3x16x16"},
        {"kind": "outputs", "name": "output", "a": "float32 1x32", "b": None},
        {"kind": "outputs", "name": "logits", "a": None, "b": "float32 1x32"},
    ]


@pytest.mark.parametrize(("a", "b", "added", "removed"), [
    ("conv:a relu:b conv:c", "conv:a relu:b conv:c", [], []),
    ("conv:a relu:b conv:c", "conv:a conv:c", [], ["b"]),
    ("conv:0 relu:1 conv:2", "conv:0 relu:1 relu:2 conv:3", ["2"], []),
    ("conv:a", "relu:a", ["a"], ["a"]),
    ("", "relu:a relu:a", ["a", "a"], []),
    ("conv:a conv:a", "conv:a", [], ["a"]),
])  # fmt: skip
def test_operations_by_name_and_type(a, b, added, removed):
    """The third: names that only count shift behind what was put in."""

    def ops(text):
        words = [word.split(":") for word in text.split()]
        return [PlacedOperation(name, kind, "", "ane", "", 0.0) for kind, name in words]

    changes = _operators(ops(a), ops(b)) or OperatorChanges((), (), ())
    assert [[op.name for op in changed] for changed in (changes.added, changes.removed)] == [added, removed]


def test_operations_that_moved_to_another_unit():
    def side(unit, ms, device="A14"):
        ops = tuple(
            PlacedOperation(name, "conv", "", where, "because", 0.0)
            for name, where in (("a", "ane"), ("b", unit))
        )
        units = {"ane": UnitShare(1, 1 - ms), unit: UnitShare(1, ms)}
        return Placement(source="estimate", device=device, units=units, ops=ops)

    changes = to_builtins(_placement(side("cpu", 0.2), side("gpu", 0.2)))
    assert changes["moved"] == [
        {"name": "b", "type": "conv", "from": "cpu", "to": "gpu", "reason": "because"}
    ]
    assert {row["unit"]: row["ops"] for row in changes["units"]} == {"cpu": [1, 0], "gpu": [0, 1]}
    assert _placement(side("cpu", 0.2), side("cpu", 0.2)) is None
    assert to_builtins(_placement(side("cpu", 0.2), side("cpu", 0.2, "M4"))) == {
        "device": {"a": "A14", "b": "M4"},
        "units": [],
        "moved": [],
    }


def test_text_and_markdown_say_the_same(pressed, cidermill):
    arguments = ("diff", pressed / "int8", pressed / "changed")
    text, markdown = cidermill(*arguments).stdout, cidermill(*arguments, "--markdown").stdout
    for word in ("sigmoid_cast_fp16", "3.weight", "differ", "MPSSigmoid", "graph", "By type: sigmoid 0"):
        assert word in text and word in markdown, word
    assert markdown.count("<details>") == markdown.count("</details>") > 0
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows if "sigmoid_cast" in line}) == 1
    assert cidermill(*arguments, "--exit-code").exit_code == 1 and cidermill(*arguments).exit_code == 0


def difference_of(changes):
    return ArtifactDifference("a", "b", "coreml", True, True, (5, 5), changes)


def test_many_of_a_kind_are_one_row():
    before, after = WeightForm("int8", 8.0), WeightForm("int4", 8.0)
    changed = tuple(WeightChange(f"w{i}", before, after, "differ") for i in range(30))
    weights = WeightChanges(changed, added=(OneSidedWeight("x", "int8", 8.0),), removed=(), same=2)
    (section,) = sections(difference_of(Changes(weights=weights)))
    assert section.cells == (
        ("+", "x", "", "int8, 8 bits", ""),
        ("", "w0 and 29 more", "int8, 8 bits", "int4, 8 bits", "differ"),
    )
    assert section.note == "2 more are the same." and section.count == 31


def test_differences_too_small_to_show_are_told_as_such():
    (section,) = sections(difference_of(Changes(error=(ErrorChange("conversion", "y", 80.01, 80.02),))))
    assert not section.cells and "--json" in section.note


def test_weights_without_names_are_matched_by_values_then_by_shape():
    """Two of one shape have changed places under names that only count, and a third has other values."""

    def stored(name, digest, shape=(4,)):
        return Stored(name, "float16", 16.0, digest, shape, named=False)

    a = {
        weight.name: weight
        for weight in (stored("v1", "x"), stored("v2", "y"), stored("v3", "z", (8,)), stored("v4", "q", (9,)))
    }
    b = {
        weight.name: weight
        for weight in (
            stored("v2", "x"),
            stored("v5", "y"),
            stored("v3", "other", (8,)),
            stored("v4", "p", (2,)),
        )
    }
    assert [(name, one.name, other.name) for name, one, other in _matched(a, b)] == [
        ("v1", "v1", "v2"),
        ("v2", "v2", "v5"),
        ("v3", "v3", "v3"),
    ]


def test_hostile_names_stay_in_their_cells(outputs, cidermill, edit):
    name = "a|b`c``d\n</details><img src=x>@someone\x1b[31m"
    edit(
        outputs / "changed" / "report.json",
        lambda report: report["artifacts"][0]["placement"]["ops"][0].update(name=name, type="strange"),
    )
    arguments = ("diff", outputs / "int8", outputs / "changed")
    markdown = cidermill(*arguments, "--markdown").stdout
    (row,) = [line for line in markdown.splitlines() if "someone" in line]
    assert r"```a\|b`c``d?</details><img src=x>@someone?[31m```" in row
    assert "\x1b" not in markdown and "\x1b" not in cidermill(*arguments).stdout


@pytest.mark.parametrize(("a", "b", "text"), [
    ("int8/net.mlpackage", "int8/net.pte", "no target in common: coreml and executorch-mps"),
    ("nowhere", "int8", "nowhere"),
    ("int8", "", "neither an artifact nor a folder"),
    ("broken.json", "int8", "is not a report"),
    ("newer.json", "int8", "is from a newer cidermill"),
    ("int8/report.html", "int8", "report.html"),
])  # fmt: skip
def test_what_cannot_be_compared(outputs, cidermill, a, b, text):
    (outputs / "broken.json").write_text("{")
    (outputs / "newer.json").write_text('{"schema": "cidermill.report/7"}')
    result = cidermill("diff", outputs / a, outputs / b)
    assert (
        result.exit_code == 2
        and text in result.stderr
        and not result.stdout
        and "Traceback" not in result.stderr
    )


def test_bare_artifacts_are_placed_as_the_report_was_or_as_asked(differ, pressed):
    arguments = (pressed / "int8" / "net.pte", pressed / "changed" / "net.pte")
    for options, device in (((), "iPhone 15 Pro"), (("--device", "A14"), "A14")):
        assert [
            row["device"] for row in differ(*arguments, *options)["artifacts"][0]["changes"]["latency"]
        ] == [device]
    assert not differ(pressed / "int8" / "net.mlpackage", pressed / "int8")["different"]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """-> the folder of two classifiers whose labels stand in another order, and of two detectors"""
    folder = tmp_path_factory.mktemp("named")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 6)).eval()
    for name, labels in (
        ("a", ["cat", "dog", "cow", "d", "e", "f"]),
        ("b", ["dog", "cat", "cow", "d", "e", "f"]),
    ):
        convert(net, (torch.zeros(1, 8),), labels=labels, out=folder / name, cache=False)

    class Detector(torch.nn.Module):
        def forward(self, x):
            return {"boxes": x[..., :4].sigmoid() * 0.5, "scores": x[..., 4:].sigmoid()}

    for name, iou in (("c", 0.3), ("d", 0.6)):
        options = {"labels": ["cat", "dog"], "nms": f"boxes,scores:iou={iou}"}
        convert(Detector().eval(), (torch.zeros(1, 9, 6),), out=folder / name, cache=False, **options)
    return folder


@pytest.mark.parametrize("file", ["", "/Sequential.mlpackage"])
def test_labels_in_another_order(differ, named, cidermill, file):
    (one,) = differ(f"{named / 'a'}{file}", f"{named / 'b'}{file}")["artifacts"]
    assert one["changes"] == {
        "interface": [
            {"kind": "labels", "name": "0", "a": "cat", "b": "dog"},
            {"kind": "labels", "name": "1", "a": "dog", "b": "cat"},
        ]
    }
    told = cidermill("diff", named / "a", named / "b").stdout.split()
    assert "label 0 cat dog" in " ".join(told)


@pytest.mark.parametrize("file", ["", "/Detector.mlpackage"])
def test_thresholds_of_a_suppression(differ, named, file):
    (one,) = differ(f"{named / 'c'}{file}", f"{named / 'd'}{file}")["artifacts"]
    assert one["changes"]["interface"] == [{"kind": "suppression", "name": "iou", "a": "0.3", "b": "0.6"}]
