"""`cidermill check`: what counts as worse than the lock, what does not, and locks that cannot be used."""

import json
import shutil

import pytest


@pytest.fixture
def locked(cidermill, outputs, tmp_path):
    """-> run(*options): `cidermill check` on the int8 reports, which are in the lock."""
    lock = tmp_path / "cidermill.lock.json"
    result = cidermill("check", outputs / "int8", "--lock", lock, "--update")
    assert result.exit_code == 0, result.output

    def run(*options, of="int8"):
        return cidermill("check", outputs / of, "--lock", lock, *options)

    run.lock, run.report = lock, outputs / "int8" / "report.json"
    return run


def outcomes(result):
    """figure -> outcome of what is not as in the lock, over all artifacts."""
    found = json.loads(result.stdout)
    return {
        row["figure"]: row["outcome"]
        for section in found["artifacts"]
        for row in section["findings"]
        if row["outcome"] != "equal"
    }


def test_what_is_as_in_the_lock_passes(locked):
    result = locked("--json")
    assert result.exit_code == 0 and outcomes(result) == {}
    assert json.loads(result.stdout)["verdict"] == "pass"
    assert "2 of 2 artifacts are as good as" in locked().stdout


def test_the_lock_has_no_paths_times_or_machines(locked):
    content = json.loads(locked.lock.read_text())
    assert content["schema"] == "cidermill.lock/1"
    assert list(content["artifacts"]) == ["net/coreml/int8", "net/executorch-mps/int8"]
    text, report = locked.lock.read_text(), json.loads(locked.report.read_text())
    assert (
        str(locked.lock.parent) not in text
        and report["environment"]["os"] not in text
        and "seconds" not in text
    )
    entry, artifact = content["artifacts"]["net/coreml/int8"], report["artifacts"][0]
    assert entry["size_bytes"] == artifact["size_bytes"]
    assert entry["sha256"] == {"artifact": artifact["sha256"], "source": report["source"]["sha256"]}
    assert entry["psnr_db"]["compression"] == {
        "output": pytest.approx(artifact["validation"]["compression"][0]["psnr_db"], abs=0.005)
    }
    assert entry["latency_ms"] == {"iPhone 15 Pro": pytest.approx(artifact["latency"]["devices"][0]["ms"])}
    assert entry["placement"]["units"]["cpu"]["ops"] == artifact["placement"]["units"]["cpu"]["ops"]


def psnr(kind, by):
    return lambda artifact: artifact["validation"][kind][0].update(
        psnr_db=artifact["validation"][kind][0]["psnr_db"] + by
    )


CHANGES = {
    "a byte more": (
        lambda artifact: artifact.update(size_bytes=artifact["size_bytes"] + 1),
        {"size_bytes": "worse"},
        1,
    ),
    "a byte less": (
        lambda artifact: artifact.update(size_bytes=artifact["size_bytes"] - 1),
        {"size_bytes": "better"},
        0,
    ),
    "0.4 dB less": (psnr("compression", -0.4), {}, 0),
    "0.6 dB less": (psnr("compression", -0.6), {"psnr_db.compression.output": "worse"}, 1),
    "0.6 dB more": (psnr("compression", 0.6), {"psnr_db.compression.output": "better"}, 0),
    "0.6 dB less of conversion": (psnr("conversion", -0.6), {"psnr_db.conversion.output": "worse"}, 1),
    "no psnr at all": (
        lambda artifact: artifact["validation"]["conversion"][0].update(psnr_db=None),
        {"psnr_db.conversion.output": "missing"},
        1,
    ),
    "an output gone": (
        lambda artifact: artifact["validation"].update(compression=[]),
        {"psnr_db.compression.output": "missing"},
        1,
    ),
    "slower": (
        lambda artifact: artifact["latency"]["devices"][0].update(ms=9.0),
        {"latency_ms.iPhone 15 Pro": "worse"},
        1,
    ),
    "faster": (
        lambda artifact: artifact["latency"]["devices"][0].update(ms=0.01),
        {"latency_ms.iPhone 15 Pro": "better"},
        0,
    ),
    "another device": (
        lambda artifact: artifact["latency"]["devices"][0].update(device="A14"),
        {"latency_ms.iPhone 15 Pro": "missing"},
        1,
    ),
    "more on the Neural Engine": (
        lambda artifact: artifact["placement"]["units"]["ane"].update(share=0.5),
        {"ane_share": "better"},
        0,
    ),
    "placed elsewhere": (
        lambda artifact: artifact["placement"].update(device="A14"),
        {"ane_share": "missing"},
        1,
    ),
    "a failing verdict": (
        lambda artifact: artifact.update(verdict="fail", warnings=["Too bad.\nMend it."]),
        {"verdict": "worse"},
        1,
    ),
    "bytes that are not the report's": (
        lambda artifact: artifact.update(sha256="0" * 64),
        {"file": "worse", "sha256.artifact": "changed"},
        1,
    ),
}


@pytest.mark.parametrize(("change", "wanted", "code"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_report(locked, edit, change, wanted, code):
    edit(locked.report, lambda report: change(report["artifacts"][0]))
    result = locked("--json")
    assert (outcomes(result), result.exit_code) == (wanted, code)


def test_less_on_the_neural_engine_is_worse(locked, edit):
    edit(
        locked.lock,
        lambda lock: lock["artifacts"]["net/coreml/int8"]["placement"]["units"]["ane"].update(share=0.3),
    )
    result = locked("--json")
    assert outcomes(result) == {"ane_share": "worse"} and result.exit_code == 1
    assert (
        "30 % of the time on the Neural Engine before, 0 % of the time on the Neural Engine now."
        in result.stdout
    )


def test_other_hashes_and_tools_are_told_and_fail_only_with_exact(locked, edit):
    edit(
        locked.lock,
        lambda lock: lock["artifacts"]["net/coreml/int8"]["sha256"].update(
            artifact="0" * 64, source="1" * 64
        ),
    )
    edit(locked.lock, lambda lock: lock["artifacts"]["net/coreml/int8"]["tools"].update(torch="1.0"))
    result = locked("--json")
    assert (
        outcomes(result)
        == {
            "sha256.artifact": "changed",
            "sha256.source": "changed",
            "tools.torch": "changed",
        }
        and result.exit_code == 0
    )
    exact = json.loads(locked("--json", "--exact").stdout)
    assert [row["figure"] for row in exact["artifacts"][0]["findings"] if row["fails"]] == [
        "sha256.artifact",
        "sha256.source",
    ]
    assert locked("--exact").exit_code == 1


def test_a_recipe_chosen_by_a_budget_is_known_by_the_budget(locked, edit, outputs):
    """Another choice within the same budget is compared with the earlier one."""
    for name in ("int8", "int4"):
        edit(outputs / name / "report.json", lambda report: report.update(budget={"asked": "9kB"}))
    assert locked("--update").exit_code == 0
    assert "net/coreml/budget 9kB" in json.loads(locked.lock.read_text())["artifacts"]
    found = outcomes(locked("--json", of="int4"))
    assert (
        found["recipe"] == "changed"
        and found["size_bytes"] == "better"
        and found["psnr_db.compression.output"] == "worse"
    )


def test_a_tampered_file_and_a_missing_one_fail(locked):
    (locked.report.parent / "net.pte").write_bytes(b"something else")
    result = locked("--json")
    assert (
        result.exit_code == 1
        and outcomes(result) == {"file": "worse"}
        and "changed or damaged after it was validated" in result.stdout
    )
    (locked.report.parent / "net.pte").unlink()
    result = locked("--json")
    assert result.exit_code == 1 and outcomes(result) == {"file": "missing"}
    assert locked("--update").exit_code == 1, "what is not there cannot be accepted"


def test_the_tolerance_is_an_option(locked, edit):
    edit(locked.report, lambda report: psnr("compression", -0.6)(report["artifacts"][0]))
    assert locked("--tolerance", "1").exit_code == 0
    assert locked("--tolerance", "0").exit_code == 1
    result = locked("--tolerance", "-1")
    assert result.exit_code == 2 and "--tolerance -1.0" in result.stderr


def test_an_artifact_that_the_lock_does_not_know_fails_until_it_is_accepted(locked):
    result = locked(of="int4")
    assert "It is not in the lock, which has net/coreml/int8." in locked("--json", of="int4").stdout
    assert result.exit_code == 1 and "not in the lock" in result.stdout and "--update" in result.stdout
    assert "net/coreml/int8" in result.stdout, "what was not checked is named"
    before = json.loads(locked.lock.read_text())["artifacts"]
    assert locked("--update", of="int4").exit_code == 0
    after = json.loads(locked.lock.read_text())["artifacts"]
    assert before.items() < after.items() and len(after) == 4
    assert locked(of="int4").exit_code == locked().exit_code == 0


def test_complete_reports_miss_what_only_the_lock_has(locked):
    locked("--update", of="int4")
    result = locked("--complete", "--json")
    assert result.exit_code == 1 and outcomes(result) == {"artifact": "missing"}
    assert json.loads(result.stdout)["not_checked"] == []
    assert locked("--complete", "--update").exit_code == 0
    assert list(json.loads(locked.lock.read_text())["artifacts"]) == [
        "net/coreml/int8",
        "net/executorch-mps/int8",
    ]


def test_updating_accepts_what_is_worse_but_not_what_fails(locked, edit):
    edit(locked.report, lambda report: report["artifacts"][0]["latency"]["devices"][0].update(ms=9.0))
    assert locked().exit_code == 1
    assert locked("--update").exit_code == locked().exit_code == 0
    edit(locked.report, lambda report: report["artifacts"][0].update(verdict="fail"))
    before = locked.lock.read_bytes()
    result = locked("--update")
    assert (
        result.exit_code == 1
        and locked.lock.read_bytes() == before
        and "was not written: what fails its own verdict" in result.stdout
    )


def test_a_folder_of_reports_and_equal_bytes_in_another_order(locked, outputs, cidermill, tmp_path):
    """A build's folder; where two models have one name and one recipe, their folders tell them apart, and do
    so later by themselves."""
    lock = tmp_path / "all.json"
    assert cidermill("check", outputs, "--lock", lock, "--update").exit_code == 0
    names = list(json.loads(lock.read_text())["artifacts"])
    assert names == sorted(
        """
        changed:net/coreml/int8 changed:net/executorch-mps/int8 int8:net/coreml/int8
        int8:net/executorch-mps/int8 net/coreml/int4:block16 net/executorch-mps/int4:block16
    """.split()
    )
    assert (
        cidermill("check", outputs / "changed", outputs / "int8" / "report.json", "--lock", lock).exit_code
        == 0
    )
    again = tmp_path / "again.json"
    reports = [outputs / name / "report.json" for name in ("int8", "int4", "changed")]
    assert cidermill("check", *reports, *reports, "--lock", again, "--update").exit_code == 0
    assert again.read_bytes() == lock.read_bytes()


def test_two_that_nothing_tells_apart_are_refused(locked, outputs, cidermill, tmp_path):
    shutil.copytree(outputs / "int8", tmp_path / "other" / "int8")
    result = cidermill("check", outputs / "int8", tmp_path / "other" / "int8", "--lock", locked.lock)
    assert (
        result.exit_code == 2
        and "both have an artifact int8:net/coreml/int8" in result.stderr
        and "--lock" in result.stderr
    )


UNUSABLE = {
    "none": (None, ["There is no lock", "--update"]),
    "a newer schema": (
        {"schema": "cidermill.lock/2", "artifacts": []},
        ["is from a newer cidermill", "cidermill.lock/2", "Update cidermill"],
    ),
    "a report": ({"schema": "cidermill.report/1"}, ["is not a lock of cidermill", "cidermill.report/1"]),
    "a list": ([1], ["is not a lock of cidermill"]),
    "an old thing": ({}, ["is not a lock of cidermill"]),
    "no JSON": ("{", ["is not a lock of cidermill", "version control"]),
    "no text": (b"\xff\xfe\x00", ["is not a lock of cidermill"]),
    "no artifacts": ({"schema": "cidermill.lock/1"}, ["is a damaged lock", "version control"]),
    "an empty entry": (
        {"schema": "cidermill.lock/1", "artifacts": {"net/coreml/int8": {}}},
        ["is a damaged lock"],
    ),
    "deep nesting": ("[" * 100_000, ["is not a lock of cidermill"]),
}


@pytest.mark.parametrize(("content", "texts"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("update", [False, True])
def test_a_lock_that_cannot_be_used(pressed, cidermill, tmp_path, content, texts, update):
    """Updating does not overwrite it either, but makes one where there is none."""
    lock = tmp_path / "lock.json"
    if content is not None:
        lock.write_bytes(
            content
            if isinstance(content, bytes)
            else (content if isinstance(content, str) else json.dumps(content)).encode()
        )
    elif update:
        return
    before = lock.read_bytes() if content is not None else None
    result = cidermill("check", pressed / "int8", "--lock", lock, *(["--update"] if update else []))
    assert result.exit_code == 2 and not result.stdout
    assert all(text in result.stderr for text in texts), result.stderr
    assert "Traceback" not in result.stderr
    assert (lock.read_bytes() if lock.exists() else None) == before


@pytest.mark.parametrize("value", [float("nan"), "12", None, True])
def test_a_damaged_number_in_the_lock_never_passes(locked, edit, value):
    edit(locked.lock, lambda lock: lock["artifacts"]["net/coreml/int8"].update(size_bytes=value))
    assert locked().exit_code == 2


DAMAGE = {
    "no artifacts": lambda report: report.pop("artifacts"),
    "no validation": lambda report: report["artifacts"][0].pop("validation"),
    "a size in words": lambda report: report["artifacts"][0].update(size_bytes="large"),
    "no numbers": lambda report: report["artifacts"][1]["latency"]["devices"][0].update(ms=None),
    "artifacts of another kind": lambda report: report.update(artifacts=[1, 2]),
    "a budget of nothing": lambda report: report.update(budget={"asked": 3}),
    "no source": lambda report: report.update(source=None),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_report_is_refused(locked, edit, damage):
    edit(locked.report, damage)
    result = locked()
    assert (
        result.exit_code == 2 and "is a damaged report" in result.stderr and "Traceback" not in result.stderr
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [("nowhere", "cannot be read"), ("empty", "holds no report.json"), ("text.json", "is not a report")],
)
def test_what_is_no_report(locked, cidermill, tmp_path, name, text):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("hello")
    result = cidermill("check", tmp_path / name, "--lock", locked.lock)
    assert result.exit_code == 2 and text in result.stderr


def test_a_lock_that_cannot_be_written(pressed, cidermill, tmp_path):
    (tmp_path / "file").write_text("")
    result = cidermill("check", pressed / "int8", "--lock", tmp_path / "file" / "lock.json", "--update")
    assert result.exit_code == 2 and "cannot be written" in result.stderr and "--lock" in result.stderr


def sizes_of(*rows):
    """A change of a report's artifact: (inputs, PSNR, ms) at each of its sizes."""

    def change(report):
        artifact = report["artifacts"][0]
        error = artifact["validation"]["conversion"][0]
        artifact["validation"]["sizes"] = [
            {"inputs": inputs, "conversion": [error | {"psnr_db": psnr}]} for inputs, psnr, _ in rows
        ]
        artifact["latency"]["shapes"] = [
            {
                "inputs": inputs, "kind": "enumerated", "problem": "", "unit": "cpu", "ms": ms,
                "low_ms": ms, "high_ms": ms,
            }
            for inputs, _, ms in rows
        ]  # fmt: skip

    return change


@pytest.mark.parametrize(
    "rows, wanted",
    [
        ([("x 1x8", 70.0, 1.0), ("x 1x16", 66.0, 2.0)], {}),
        ([("x 1x8", 70.0, 1.0)], {"sizes.x 1x16": "missing"}),
        ([("x 1x8", 70.0, 1.5), ("x 1x16", 66.0, 2.0)], {"sizes.x 1x8.latency_ms": "worse"}),
        ([("x 1x8", 70.0, 1.0), ("x 1x16", 60.0, 2.0)], {"sizes.x 1x16.psnr_db": "worse"}),
        ([("x 1x8", 70.0, 1.0), ("x 1x16", 66.0, 2.0), ("x 1x32", 50.0, 9.0)], {}),
    ],
)
def test_the_lock_knows_the_sizes_that_an_app_may_choose(locked, edit, rows, wanted):
    edit(locked.report, sizes_of(("x 1x8", 70.0, 1.0), ("x 1x16", 66.0, 2.0)))
    assert locked("--update").exit_code == 0
    edit(locked.report, sizes_of(*rows))
    result = locked("--json")
    assert outcomes(result) == wanted and result.exit_code == (1 if wanted else 0)
