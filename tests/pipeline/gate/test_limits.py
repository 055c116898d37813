"""Limits of `convert`: what they refuse at once, how they judge an artifact, and what the command does about
a broken one."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cidermill.models.errors import UserError
from cidermill.pipeline.commands.cli import convert
from cidermill.pipeline.limits import got_text, limit_text, with_limits
from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.report.records import Artifact, Latency, MeasuredLatency, Placement, Validation
from cidermill.validation.judge.compare import OutputError
from cidermill.validation.records import Compression, DeviceLatency, Machine, MeasuredTimes, UnitShare

REFUSED = {
    "no unit": (dict(max_size="12"), "--max-size '12' is no size", "12MB"),
    "no number": (dict(max_size="big"), "--max-size 'big'", "12MB"),
    "zero": (dict(max_size="0MB"), "--max-size '0MB'", "12MB"),
    "endless": (dict(max_size="9" * 400 + "MB"), "is no size", "12MB"),
    "bits per weight": (dict(max_size="4.5bpw"), "--max-size '4.5bpw'", "--budget"),
    "no device": (dict(max_latency=("3ms",)), "--max-latency '3ms'", "iPhone 15 Pro=3ms"),
    "no time": (dict(max_latency=("iPhone 12",)), "--max-latency 'iPhone 12'", "iPhone 15 Pro=3ms"),
    "a time of nothing": (
        dict(max_latency=("iPhone 12=0ms",)),
        "--max-latency 'iPhone 12=0ms'",
        "iPhone 15 Pro=3ms",
    ),
    "an unknown unit": (dict(max_latency=("iPhone 12=3 minutes",)), "--max-latency", "us, ms or s"),
    "an unknown device": (
        dict(max_latency=("iPhone 99 Pro=3ms",)),
        "unknown device 'iPhone 99 Pro'",
        "A17 Pro",
    ),
    "percent": (dict(min_ane_share=95.0), "--min-ane-share 95.0", "0.95"),
    "no share": (dict(min_ane_share=0.0), "--min-ane-share 0.0", "0.95"),
    "not a number": (dict(min_ane_share=float("nan")), "--min-ane-share nan", "0.95"),
    "no Neural Engine": (
        dict(min_ane_share=0.5, target="executorch-mps"),
        "--min-ane-share is of Core ML",
        "--target coreml",
    ),
}


@pytest.mark.parametrize(("options", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_a_limit_that_is_none_is_refused_at_once(options, message, hint):
    with pytest.raises(UserError) as caught:
        plan_from("m.pt", options)
    assert message in caught.value.message and hint in caught.value.hint


def judged_by(options, artifact):
    return with_limits(plan_from("m.pt", options), artifact)


def artifact_of(**changes) -> Artifact:
    phone = DeviceLatency("iPhone 15 Pro", "A17 Pro", "all", 3.0, 2.0, 4.5)
    laptop = DeviceLatency("MacBook Air (M2)", "M2", "all", 2.0, 1.0, 4.0)
    artifact = Artifact(
        target="coreml",
        recipe="int8",
        path="net.mlpackage",
        size_bytes=12_000_000,
        sha256="5f" * 32,
        verdict="pass",
        validation=Validation(
            "reference", (), (OutputError("y", (1,), psnr_db=31.5),), 40.0, native="not run: needs macOS"
        ),
        compression=Compression(weights=(), bytes={}),
        placement=Placement(
            source="estimate",
            device="iPhone 15 Pro",
            units={"ane": UnitShare(2, 0.75), "cpu": UnitShare(98, 0.25)},
            ops=(),
        ),
        latency=Latency("estimate", (phone, laptop), measured="not run: needs macOS"),
        warnings=("earlier",),
    )
    return replace(artifact, **changes)


JUDGED = {
    "size at the edge": (dict(max_size="12MB"), "pass", 12_000_000),
    "size above": (dict(max_size="11.9MB"), "fail", 12_000_000),
    "size in powers of two": (dict(max_size="11.5MiB"), "pass", 12_000_000),
    "psnr kept": (dict(min_psnr=31.5), "pass", 31.5),
    "psnr below": (dict(min_psnr=32), "fail", 31.5),
    "latency kept": (dict(max_latency=("iphone15pro=3ms",)), "pass", 3.0),
    "latency above": (dict(max_latency=("iPhone 15 Pro=2999us",)), "fail", 3.0),
    "latency of a second": (dict(max_latency=("iPhone 15 Pro = 1 s",)), "pass", 3.0),
    "share kept": (dict(min_ane_share=0.75), "pass", 0.75),
    "share below": (dict(min_ane_share=0.76), "fail", 0.75),
}


@pytest.mark.parametrize(("options", "verdict", "got"), JUDGED.values(), ids=JUDGED)
def test_each_limit_is_judged_at_its_edge(options, verdict, got):
    """The share is of time: by number of operations it would be 2 %."""
    judged = judged_by(options, artifact_of())
    (limit,) = judged.limits
    assert (limit.verdict, limit.got, judged.verdict) == (verdict, got, verdict)
    own = len(judged.warnings) - 1
    assert own == (verdict == "fail" and "min_psnr" not in options), (
        "a broken psnr is told by the verdict on each output"
    )


def test_no_limit_is_no_row_and_leaves_the_verdict():
    judged = judged_by({}, artifact_of(verdict="fail"))
    assert judged.limits == () and judged.verdict == "fail" and judged.warnings == ("earlier",)


def test_a_kept_limit_does_not_mend_another_verdict():
    assert judged_by(dict(max_size="1GB"), artifact_of(verdict="fail")).verdict == "fail"


def test_a_measured_time_comes_before_the_estimate_on_its_chip_only():
    times = (MeasuredTimes("cpu_only", ms=9.0, low_ms=8.0, high_ms=10.0),)
    times += (MeasuredTimes("all", ms=2.6, low_ms=2.5, high_ms=2.8),)
    measured = MeasuredLatency("measured", Machine("M2", "Mac14,2", "macOS 15.5"), "1", times)
    phone, laptop = artifact_of().latency.devices
    latency = Latency("estimate", (phone, replace(laptop, device="M2")), measured=measured)
    asked = dict(max_latency=("M2=2.5ms", "iPhone 15 Pro=4ms"))
    judged = judged_by(asked, artifact_of(latency=latency))
    on_m2, on_phone = judged.limits
    assert (on_m2.got, on_m2.source, on_m2.verdict) == (2.6, "measured", "fail")
    assert (on_phone.got, on_phone.source, on_phone.verdict) == (3.0, "estimate", "pass")
    assert "is measured at 2.60 ms (2.50–2.80), 10 to 90 % of the runs" in judged.warnings[-1]
    crashed = MeasuredTimes("all", problem="crashed: signal 11 (SIGSEGV) in cold load")
    latency = replace(latency, measured=replace(measured, units=(times[0], crashed)))
    assert judged_by(asked, artifact_of(latency=latency)).limits[0].source == "estimate"


def test_the_messages_say_what_and_what_to_do():
    limits = dict(max_size="1MB", max_latency=("iPhone 15 Pro=1ms", "A14=1ms"), min_ane_share=0.9)
    plan = plan_from("m.pt", limits)
    size, latency, unknown, share = (
        warning.split("\n") for warning in with_limits(plan, artifact_of()).warnings[1:]
    )
    assert (
        size[0] == "The artifact has 12.0 MB (12,000,000 bytes); the limit (--max-size) is 1.00 MB."
        and "raise the limit" in size[1]
    )
    assert (
        latency[0]
        == "The latency on iPhone 15 Pro is estimated at 3.00 ms (2.00–4.50) with its band; the limit"
        " (--max-latency) is 1 ms."
    )
    assert unknown[0] == "No latency is known for A14; the limit (--max-latency) is 1 ms."
    assert share[0] == (
        "75 % of the operations' time (an estimate) is on the Neural Engine of iPhone 15 Pro; "
        "the limit (--min-ane-share) is 90 %."
    )
    assert all(len(lines) == 2 and lines[1] for lines in (size, latency, unknown, share))


def test_a_share_of_the_neural_engine_is_not_applicable_to_mps():
    plan = plan_from("m.pt", dict(target=("coreml", "executorch-mps"), min_ane_share=0.9))
    judged = with_limits(plan, artifact_of(target="executorch-mps"))
    (limit,) = judged.limits
    assert limit.verdict == "not applicable" and judged.verdict == "pass"
    assert judged.warnings == ("earlier",)
    assert (limit_text(limit), got_text(limit)) == (
        "at least 90 % of the time on the Neural Engine",
        "not applicable",
    )


@pytest.mark.parametrize(("devices", "limits", "wanted"), [
    ((), (), ("iPhone 15 Pro",)),
    (("A14",), ("iPhone 12=3ms",), ("A14", "iPhone 12")),
    (("iphone12", "A14"), ("iPhone 12=3ms", "iPhone 12=2ms"), ("iPhone 12", "A14")),
    ((), ("iPhone 12=3ms", "iphone 12=4ms", "M4=1ms"), ("iPhone 12", "M4")),
])  # fmt: skip
def test_the_devices_of_limits_are_estimated_for_once(devices, limits, wanted):
    plan = plan_from("m.pt", dict(device=devices, max_latency=limits))
    assert tuple(device.name for device in plan.devices) == wanted


def test_all_devices_come_after_the_one_with_a_limit():
    plan = plan_from("m.pt", dict(device=("iphone12", "all"), max_latency=("iPhone 12=3ms", "iPhone 12=2ms")))
    others = plan_from("m.pt", dict(device="all", max_latency="iPhone 12=3ms")).devices
    assert plan.devices == others and plan.devices[0].name == "iPhone 12"
    chips = [device.chip for device in plan.devices]
    assert len(set(chips)) == len(chips) > 10


def test_convert_fails_on_broken_limits_and_still_writes(gate_models, tmp_path):
    arguments = [
        "--max-size",
        "1kB",
        "--max-latency",
        "iPhone 12=1us",
        "--min-ane-share",
        "0.95",
        "--target",
        "coreml",
        "--target",
        "executorch-mps",
    ]
    result = CliRunner().invoke(
        convert, [str(gate_models / "net.pt2"), "--out", str(tmp_path / "out"), *arguments]
    )
    assert result.exit_code == 1, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    package, program = report["artifacts"]
    assert report["verdict"] == package["verdict"] == program["verdict"] == "fail"
    assert [(row["limit"], row["verdict"]) for row in package["limits"]] == [
        ("max_size_bytes", "fail"), ("max_latency_ms", "fail"), ("min_ane_share", "fail")]  # fmt: skip
    assert [row["verdict"] for row in program["limits"]] == ["fail", "fail", "not applicable"]
    assert (
        package["limits"][1]["device"] == "iPhone 12"
        and package["limits"][1]["got"] == package["latency"]["devices"][0]["ms"]
    )
    assert (
        "--max-size" in result.stdout
        and "--max-latency" in result.stdout
        and "--min-ane-share" in result.stdout
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "net.mlpackage",
        "net.pte",
        "report.json",
        "report.html",
    }


def test_a_limit_is_judged_anew_when_the_conversion_comes_from_the_cache(gate_models, tmp_path, monkeypatch):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "cache"))
    seen = []
    for options in ([], ["--max-size", "1kB"], ["--max-size", "1MB"], []):
        result = CliRunner().invoke(
            convert, [str(gate_models / "net.pt2"), "--out", str(tmp_path / "out"), "--quiet", *options]
        )
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        (artifact,) = report["artifacts"]
        seen.append(
            (
                result.exit_code,
                report["verdict"],
                [row["verdict"] for row in artifact["limits"]],
                len(artifact["warnings"]),
            )
        )
        assert any(stage["cached"] for stage in report["stages"]) == (len(seen) > 1)
    assert seen == [
        (0, "pass", [], 0),
        (1, "fail", ["fail"], 1),
        (0, "pass", ["pass"], 0),
        (0, "pass", [], 0),
    ]


def test_convert_passes_when_every_limit_is_kept(gate_models, tmp_path):
    arguments = ["--max-size", "1MB", "--max-latency", "iPhone 12=1s", "--quiet"]
    result = CliRunner().invoke(
        convert, [str(gate_models / "net.pt2"), "--out", str(tmp_path / "out"), *arguments]
    )
    assert result.exit_code == 0, result.output
    (artifact,) = json.loads((tmp_path / "out" / "report.json").read_text())["artifacts"]
    assert [row["verdict"] for row in artifact["limits"]] == ["pass", "pass"] and artifact["warnings"] == []
