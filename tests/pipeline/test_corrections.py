"""`cidermill calibrate` from real reports, with times of a machine that is known: its corrections must hold
on artifacts that it has not seen."""

import json
import math
from dataclasses import asdict, replace

import msgspec
import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline import corrections as calibration
from cidermill.pipeline.commands.cli import convert, main
from cidermill.pipeline.measurements import timed_latency
from cidermill.validation import open_runner
from cidermill.validation.estimate.devices import find_device
from cidermill.validation.records import Machine, MeasuredTimes

HERE = Machine("M1", "MacBookAir10,1", "macOS 15.5")
# measured = mean factor of the units that it runs on * estimate + FLOOR_MS
MACHINE = {"ane": 1.4, "gpu": 0.7, "cpu": 2.2}
UNITS = ("all", "cpu_and_ne", "cpu_and_gpu", "cpu_only")
FLOOR_MS = 0.1
SIZES = {"small": (48, 16, 2), "middle": (96, 32, 3), "large": (128, 64, 4), "unseen": (112, 48, 3)}


def cidermill(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def inspected(artifact, units, *options):
    """The first row of what `inspect` estimates for the M1, with the units' shares of it."""
    result = cidermill("inspect", artifact, "--device", "M1", "--compute-units", units, "--json", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    return found["latency"]["devices"][0] | {
        "shares": {unit: one["share"] for unit, one in found["placement"]["units"].items()}
    }


def machine_ms(artifact, units):
    """What the known machine would take: by the command line's own estimate, which is all that the oracle
    shares."""
    found = inspected(artifact, units)
    return found["ms"] * sum(MACHINE[unit] * share for unit, share in found["shares"].items()) + FLOOR_MS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> the output folder of `convert` on a network of its size."""
    base, found = tmp_path_factory.mktemp("nets"), {}
    for name, (side, channels, depth) in SIZES.items():
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, channels, 3, padding=1)]
        for _ in range(depth):
            layers += [torch.nn.ReLU(), torch.nn.Conv2d(channels, channels, 3, padding=1)]
        program = torch.export.export(torch.nn.Sequential(*layers).eval(), (torch.randn(1, 3, side, side),))
        torch.export.save(program, base / f"{name}.pt2")
        result = CliRunner().invoke(
            convert, [str(base / f"{name}.pt2"), "--out", str(base / name), "--quiet"]
        )
        assert result.exit_code == 0, result.output
        found[name] = base / name
    return found


@pytest.fixture(scope="module")
def reports(folders, tmp_path_factory):
    """name -> report.json of the three that were measured, written as a Mac would write them."""
    base, found = tmp_path_factory.mktemp("reports"), {}
    for name in ("small", "middle", "large"):
        report = json.loads((folders[name] / "report.json").read_text())
        artifact = folders[name] / report["artifacts"][0]["path"]
        times = [MeasuredTimes(units, ms=machine_ms(artifact, units), runs=100) for units in UNITS]
        graph = open_runner(artifact, host="reference").graph
        latency = timed_latency(times, graph, "coreml", find_device("M1"), HERE)
        report["artifacts"][0]["latency"]["measured"] = msgspec.to_builtins(latency)
        found[name] = base / f"{name}.json"
        found[name].write_text(json.dumps(report))
    return found


@pytest.fixture(scope="module")
def fitted(reports, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration") / "deep" / "m1.json"
    result = cidermill("calibrate", *reports.values(), "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["path"] == str(out)
    return out


def changed(report, tmp_path, change):
    """A copy of a report with something else in it."""
    content = json.loads(report.read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


def test_a_known_machine_is_recovered_on_an_artifact_that_was_not_measured(folders, fitted):
    artifact = folders["unseen"] / "unseen.mlpackage"
    for units in UNITS:
        truth, before, after = (
            machine_ms(artifact, units),
            inspected(artifact, units),
            inspected(artifact, units, "--calibration", fitted),
        )
        assert abs(math.log(after["ms"] / truth)) < 0.05 and abs(math.log(before["ms"] / truth)) > 0.15, (
            units,
            before,
            after,
            truth,
        )
        assert after["low_ms"] < truth < after["high_ms"]
        assert after["high_ms"] / after["low_ms"] < before["high_ms"] / before["low_ms"]
        assert (
            after["source"] == "estimate" and "calibrated by 12 measurements of 3 artifacts" in after["basis"]
        )


def test_the_file_says_where_it_comes_from(reports, folders, fitted):
    content = json.loads(fitted.read_text())
    assert (
        content["schema"] == "cidermill.calibration/1"
        and content["machine"] == asdict(HERE)
        and content["date"][:2] == "20"
    )
    digests = [
        json.loads((folders[name] / "report.json").read_text())["artifacts"][0]["sha256"] for name in reports
    ]
    assert [one["artifacts"][0]["sha256"] for one in content["reports"]] == digests
    assert [one["path"] for one in content["reports"]] == [str(path) for path in reports.values()]
    assert len(content["measurements"]) == 12 and content["correction"]["chip"] == "M1"


def test_convert_takes_it_and_other_chips_keep_their_estimates(folders, fitted, tmp_path):
    source = folders["unseen"].parent / "unseen.pt2"
    command = [str(source), "--device", "A14", "--device", "M1", "--calibration", str(fitted), "--json"]
    result = CliRunner().invoke(convert, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    artifact = json.loads(result.stdout)["artifacts"][0]
    other, own = artifact["latency"]["devices"]
    assert (
        artifact["latency"]["source"] == own["source"] == "estimate"
        and artifact["latency"]["measured"] == "not run: needs macOS"
    )
    assert "calibrated" in own["basis"] and "calibrated" not in other["basis"]


def test_by_default_it_lies_where_that_machine_looks(reports, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    result = cidermill("calibrate", reports["small"])
    path = tmp_path / "cidermill" / "calibration" / "M1.json"
    assert (
        result.exit_code == 0
        and path.is_file()
        and [item.name for item in path.parent.iterdir()] == ["M1.json"]
    )
    assert result.stdout.startswith("M1: 4 measurements of 1 artifact\n") and str(path) in result.stdout
    own = calibration._own_calibration("M1")
    assert own.correction.chip == "M1" and own.correction.artifacts == 1
    assert calibration._own_calibration("M2") is None and calibration._own_calibration("") is None
    assert "calibrated" not in inspected(folders["unseen"] / "unseen.mlpackage", "all")["basis"], (
        "this is not that machine"
    )


def test_without_a_configuration_folder_it_goes_below_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        calibration.calibration_path("M2 Pro")
        == tmp_path / ".config" / "cidermill" / "calibration" / "M2 Pro.json"
    )


def test_a_machines_own_stale_calibration_is_left_out_in_words(folders, fitted, tmp_path, monkeypatch):
    """After an update of cidermill a Mac must not fail over a file that its user has forgotten, nor be
    corrected by it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = calibration.calibration_path("M1")
    path.parent.mkdir(parents=True)
    path.write_text(
        fitted.read_text().replace(json.loads(fitted.read_text())["correction"]["estimator"], "0.0.1-old")
    )
    own = calibration._own_calibration("M1")
    assert own.correction is None and own.problem.startswith(
        f"not calibrated: {path} corrects the estimates 0.0.1-old"
    )
    from cidermill.pipeline.estimates import estimate
    from cidermill.validation.estimate.devices import find_device

    graph = open_runner(folders["unseen"] / "unseen.mlpackage", host="reference").graph
    plain, stale = (
        estimate(graph, "coreml", [find_device("M1")], "all", one).latency.devices[0] for one in (None, own)
    )
    assert stale == replace(plain, basis=f"{plain.basis}; {own.problem}")


def test_an_executorch_program_is_corrected_too(folders, tmp_path):
    source = folders["small"].parent / "small.pt2"
    result = CliRunner().invoke(
        convert, [str(source), "--target", "executorch-mps", "--out", str(tmp_path / "out"), "--quiet"]
    )
    assert result.exit_code == 0, result.output
    path = tmp_path / "out" / "report.json"
    report = json.loads(path.read_text())
    before = inspected(tmp_path / "out" / "small.pte", "all")["ms"]
    graph = open_runner(tmp_path / "out" / "small.pte", host="reference").graph
    times = [MeasuredTimes("mps", ms=1.5 * before)]
    latency = timed_latency(times, graph, "executorch-mps", find_device("M1"), HERE)
    report["artifacts"][0]["latency"]["measured"] = msgspec.to_builtins(latency)
    path.write_text(json.dumps(report))
    assert cidermill("calibrate", path, "--out", tmp_path / "m1.json").exit_code == 0
    after = inspected(tmp_path / "out" / "small.pte", "all", "--calibration", tmp_path / "m1.json")["ms"]
    assert after == pytest.approx(1.5 * before, rel=0.05)


def test_a_unit_that_crashed_is_left_out(reports, tmp_path):
    def crash(report):
        report["artifacts"][0]["latency"]["measured"]["units"][0] = {
            "compute_units": "all",
            "problem": "crashed: signal 11 (SIGSEGV) in cold load",
        }

    out = tmp_path / "m1.json"
    assert cidermill("calibrate", changed(reports["small"], tmp_path, crash), "--out", out).exit_code == 0
    assert [row["compute_units"] for row in json.loads(out.read_text())["measurements"]] == [
        "cpu_and_ne",
        "cpu_and_gpu",
        "cpu_only",
    ]


def section(report):
    return report["artifacts"][0]["latency"]["measured"]


def all_crashed(report):
    section(report)["units"] = [{"compute_units": "all", "problem": "no answer within 300 s, in cold load"}]


BAD_REPORTS = {
    "another schema": (
        lambda report: report.update(schema="cidermill.report/2"),
        "its schema is 'cidermill.report/2', not 'cidermill.report/1'",
    ),
    "no schema": (lambda report: report.pop("schema"), "its schema is None"),
    "nothing measured": (
        lambda report: report["artifacts"][0]["latency"].update(measured="not run: needs macOS"),
        "holds no measured latencies (not run: needs macOS)",
    ),
    "a report of an earlier version": (
        lambda report: report["artifacts"][0]["latency"].pop("measured"),
        "holds no measured latencies (it has none)",
    ),
    "no artifacts": (lambda report: report.update(artifacts=[]), "holds no measured latencies (it has none)"),
    "every unit failed": (all_crashed, "holds no measured latencies (no answer within 300 s, in cold load)"),
    "an unknown chip": (
        lambda report: section(report)["machine"].update(chip="M99 Ultra"),
        "the chip 'M99 Ultra', which cidermill has no",
    ),
    "a virtual machine": (
        lambda report: section(report)["machine"].update(chip="M1 (Virtual)"),
        "the chip 'M1 (Virtual)', which cidermill has no",
    ),
    "a chip that is a path": (
        lambda report: section(report)["machine"].update(chip="../M1"),
        "measured on '../M1', which is no chip",
    ),
    "other estimates": (
        lambda report: section(report).update(estimator="0.0.1-old"),
        "holds the estimates 0.0.1-old; this cidermill has ",
    ),
    "a time of nothing": (lambda report: section(report)["units"][0].update(ms=0), "is a damaged report"),
    "a time in words": (
        lambda report: section(report)["units"][0].update(ms="fast"),
        "is a damaged report: Expected `float`, got `str`",
    ),
    "an infinite time": (
        lambda report: section(report)["units"][0].update(ms=float("inf")),
        "is a damaged report",
    ),
    "no estimate": (
        lambda report: section(report)["units"][0].pop("estimate"),
        "is a damaged report: ValueError('no estimate for all')",
    ),
    "artifacts that are none": (lambda report: report.update(artifacts=[7]), "is a damaged report"),
    "units that are none": (lambda report: section(report).update(units=7), "is a damaged report"),
}


@pytest.mark.parametrize(("change", "text"), BAD_REPORTS.values(), ids=BAD_REPORTS)
def test_bad_reports(reports, tmp_path, change, text):
    path = changed(reports["small"], tmp_path, change)
    result = cidermill("calibrate", path, "--out", tmp_path / "new" / "m1.json")
    assert refused(result, text) and [item.name for item in tmp_path.iterdir()] == ["changed.json"], (
        "something was written"
    )


def refused(result, text):
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2 and not result.stdout and "Traceback" not in said, result.output
    assert text.replace(" ", "") in said.replace(" ", ""), said  # lines are folded anywhere
    return True


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not a report: it is not JSON"),
        (b"\x00\xff\x80", "is not a report: it is not JSON"),
        (b"[" * 100_000, "is not a report: it is not JSON"),
        (b"[1]", "its schema is None"),
    ],
)
def test_files_that_are_no_reports(tmp_path, content, text):
    (tmp_path / "x.json").write_bytes(content)
    assert refused(cidermill("calibrate", tmp_path / "x.json"), text)


def test_files_that_cannot_be_read_or_written(reports, tmp_path):
    assert refused(
        cidermill("calibrate", tmp_path / "none.json"), "none.json cannot be read: No such file or directory"
    )
    assert refused(cidermill("calibrate", tmp_path), "cannot be read: Is a directory")
    assert refused(cidermill("calibrate", reports["small"], "--out", tmp_path), "cannot be written")
    assert refused(
        cidermill("calibrate", reports["small"], "--out", reports["small"] / "m1.json"), "cannot be written"
    )
    assert not list(tmp_path.iterdir())


def test_reports_of_two_chips(reports, tmp_path):
    other = changed(reports["small"], tmp_path, lambda report: section(report)["machine"].update(chip="M2"))
    assert refused(
        cidermill("calibrate", reports["middle"], other, "--out", tmp_path / "m.json"),
        "are of different chips: M1, M2.",
    )


def damaged(**changes):
    def change(content):
        content["correction"].update(changes)

    return change


BAD_CALIBRATIONS = {
    "another schema": (lambda content: content.update(schema="x"), "is not a calibration: its schema is 'x'"),
    "no correction": (
        lambda content: content.pop("correction"),
        "is a damaged calibration: KeyError('correction')",
    ),
    "a scale of nothing": (damaged(scale={"ane": 0, "gpu": 1, "cpu": 1}), "is a damaged calibration"),
    "a scale missing": (damaged(scale={"ane": 1}), "is a damaged calibration"),
    "a band in words": (damaged(held_out=["wide"]), "is a damaged calibration"),
    "other estimates": (
        damaged(estimator="0.0.1-old"),
        "corrects the estimates 0.0.1-old; this cidermill has",
    ),
    "another chip": (damaged(chip="M4"), "is for the M4; the estimates asked for are on M1 (M1)."),
}


@pytest.mark.parametrize(("change", "text"), BAD_CALIBRATIONS.values(), ids=BAD_CALIBRATIONS)
def test_bad_calibrations(folders, fitted, tmp_path, change, text):
    path = changed(fitted, tmp_path, change)
    assert refused(
        cidermill("inspect", folders["small"] / "small.mlpackage", "--device", "M1", "--calibration", path),
        text,
    )


def test_convert_refuses_a_bad_calibration_before_it_works(folders, reports, tmp_path):
    source = folders["small"].parent / "small.pt2"
    result = CliRunner().invoke(
        convert, [str(source), "--calibration", str(reports["small"]), "--out", str(tmp_path / "out")]
    )
    assert refused(result, "is not a calibration: its schema is 'cidermill.report/1'") and not list(
        tmp_path.iterdir()
    )
