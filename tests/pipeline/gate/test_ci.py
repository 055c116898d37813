"""What continuous integration reads: annotations as GitHub's runner takes them apart, JUnit XML as
independent parsers do, the job's summary."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from cidermill.models.errors import UserError
from cidermill.pipeline.commands.ci import announce, write_junit
from cidermill.pipeline.commands.cli import convert
from cidermill.pipeline.gate.ci import annotation, annotations, judged_model, junit_xml, summary
from cidermill.pipeline.gate.junit import Case, Suite, xml_text
from cidermill.pipeline.report.records import Report
from cidermill.pipeline.report.write import html_text

HOSTILE = "a%25b,c:d|`e`<img>&\"'\n::error::x\r\x00\x1b[31m\ud800￿]]>"


def read_command(line):
    """level, title and message of a workflow command, as actions/runner reads it (ActionCommand.TryParseV2,
    StringEscapingUtil)."""
    assert line.startswith("::") and "\n" not in line and "\r" not in line
    head, _, message = line[2:].partition("::")
    level, _, properties = head.partition(" ")
    pairs = dict(part.split("=", 1) for part in properties.split(","))
    for code, char in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        pairs = {key: value.replace(code, char) for key, value in pairs.items()}
        message = message if char in ":," else message.replace(code, char)
    return level, pairs, message


@pytest.mark.parametrize("text", ["plain", "100 %", "%0A", "%250A", "a, b: c=d::e", "über", ""])
def test_titles_and_messages_arrive_as_they_were(text):
    assert read_command(annotation("error", text, text + "\nmore")) == (
        "error",
        {"title": text},
        text + "\nmore",
    )


def test_hostile_text_is_one_command_and_cannot_steer_a_terminal():
    line = annotation("warning", HOSTILE, HOSTILE)
    level, properties, message = read_command(line)
    assert level == "warning" and list(properties) == ["title"]
    assert message.splitlines() == ["a%25b,c:d|`e`<img>&\"'", "::error::x???[31m??]]>"]
    line.encode()


def test_an_unknown_level_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="error, warning, notice"):
        annotation("fatal", "", "")


def test_reports_become_errors_then_warnings_then_a_notice(sample_report):
    found = [read_command(line) for line in annotations([judged_model(sample_report)] * 2)]
    assert [level for level, _, _ in found] == ["error", "error", "warning", "warning", "notice"]
    assert (
        found[0][1] == {"title": "vit-base executorch-mps int4:block32 fails"}
        and "overflows float16" in found[0][2]
    )
    assert found[2][1] == {"title": "vit-base coreml int8"} and "synthetic" in found[2][2]
    assert found[4][2] == "2 of 4 artifacts pass."


@pytest.fixture
def limited(report_content):
    """Its first artifact breaks a limit, keeps one, and one does not apply."""
    report = report_content
    report["artifacts"][0]["limits"] = [
        {"limit": "max_size_bytes", "asked": 1e6, "got": 87_302_144, "verdict": "fail"},
        {
            "limit": "max_latency_ms",
            "asked": 5.0,
            "got": 4.12,
            "low_ms": 3,
            "high_ms": 6,
            "source": "estimate",
            "device": "A14",
            "verdict": "pass",
        },
        {"limit": "min_ane_share", "asked": 0.9, "got": None, "verdict": "not applicable"},
    ]
    report["artifacts"][0]["verdict"] = "fail"
    return Report.from_json(report)


def test_junit_of_a_report(limited):
    root = ElementTree.fromstring(junit_xml([judged_model(limited)] * 2))
    first, second = root.findall("testsuite")
    assert first.get("name") == second.get("name") == "vit-base"
    cases = {(case.get("classname"), case.get("name")): case for case in first.findall("testcase")}
    group = "vit-base.coreml.int8"
    assert (
        cases[group, "at most 1.00 MB"]
        .find("failure")
        .get("message")
        .startswith("87.3 MB (87,302,144 bytes)")
    )
    assert cases[group, "at most 5 ms on A14"].find("failure") is None
    assert (
        cases[group, "at least 90 % of the time on the Neural Engine"].find("skipped").get("message")
        == "not applicable"
    )
    assert cases[group, "conversion (native)"].find("skipped").get("message") == "not run: needs macOS"
    assert cases[group, "verdict"].find("failure").text.startswith("The validation inputs are synthetic")
    bad = cases["vit-base.executorch-mps.int4:block32", "conversion of logits"].find("failure")
    assert bad.text == "31.0 dB: 2 values are NaN or infinite where the reference is finite"
    properties = {one.get("name"): one.get("value") for one in first.find("properties")}
    assert (
        properties["coreml.int8.size_bytes"] == "87302144"
        and float(properties["coreml.int8.compression.psnr_db[logits]"]) == 38.4
    )
    for element in (root, first):  # the counts are what is there
        below = list(element.iter("testcase"))
        assert int(element.get("tests")) == len(below) and element.get("errors") == "0"
        for kind, tag in (("failures", "failure"), ("skipped", "skipped")):
            assert int(element.get(kind)) == sum(case.find(tag) is not None for case in below) > 0


def test_the_html_report_shows_limits_that_are_kept_too(limited):
    content = limited.to_json()
    content["artifacts"][0]["limits"][1]["device"] = "<b>A14"
    page = html_text(Report.from_json(content))
    for text in (
        "at most 1.00 MB",
        "87.3 MB (87,302,144 bytes)",
        "at most 5 ms on &lt;b&gt;A14",
        "4.12 ms (3.00–6.00), estimated",
        "not applicable",
    ):
        assert text in page, text
    assert "<b>A14" not in page


def test_junit_has_the_form_that_surefire_and_jenkins_demand(limited):
    """Required attributes, order of elements and the pattern of times of surefire-test-report.xsd and
    Jenkins' junit-10.xsd, written down here."""
    root = ElementTree.fromstring(junit_xml([judged_model(limited)]).encode())
    seconds = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]{0,3})?")
    assert root.tag == "testsuites"
    for suite in root:
        assert suite.tag == "testsuite" and set(suite.attrib) == {
            "name",
            "tests",
            "failures",
            "errors",
            "skipped",
            "time",
        }
        assert [child.tag for child in suite] == ["properties"] + ["testcase"] * (len(suite) - 1)
        assert all(set(one.attrib) == {"name", "value"} for one in suite.find("properties"))
        for case in suite.findall("testcase"):
            assert set(case.attrib) == {"name", "classname", "time"} and seconds.fullmatch(case.get("time"))
            assert [child.tag for child in case] in ([], ["failure"], ["skipped"])
            assert all(child.get("message") for child in case)
        assert seconds.fullmatch(suite.get("time"))


def test_junit_survives_hostile_names():
    xml = xml_text(
        [
            Suite(
                HOSTILE,
                (Case(HOSTILE, HOSTILE, HOSTILE), Case("a", "b", skipped=HOSTILE)),
                ((HOSTILE, HOSTILE),),
            )
        ]
    )
    root = ElementTree.fromstring(xml.encode("utf-8"))
    case = root.find("testsuite/testcase")
    held = HOSTILE.replace("\x00", "�").replace("\x1b", "�").replace("\ud800", "�").replace("￿", "�")
    assert case.get("name") == held
    assert case.find("failure").text == held.replace("\r", "\n"), (
        "a carriage return in a text is a line's end to XML"
    )
    assert case.find("failure").get("message") == "a%25b,c:d|`e`<img>&\"'"


def test_junit_is_read_by_junitparser(limited, tmp_path):
    junitparser = pytest.importorskip("junitparser")
    (tmp_path / "junit.xml").write_text(junit_xml([judged_model(limited)]), encoding="utf-8")
    (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    failed = [case.name for case in suite if case.result and isinstance(case.result[0], junitparser.Failure)]
    assert failed[:2] == ["verdict", "at most 1.00 MB"] and suite.failures == len(failed)


def test_no_report_is_an_empty_document():
    assert ElementTree.fromstring(junit_xml([])).get("tests") == "0" and annotations([]) == []


def test_the_summary_is_a_table_with_the_warnings(sample_report):
    text = summary([judged_model(sample_report)])
    assert text.startswith("### cidermill: fail\n")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({line.count("|") for line in rows}) == 1
    assert (
        "| `vit-base` | `coreml` `int8` | 87.3 MB | 66.8 dB | 36.1 dB | 4.12 ms (2.88–5.97) on `iPhone 15"
        " Pro` | pass |" in rows
    )
    assert "overflows float16" in text and "<details>" not in text
    passing = replace(sample_report, artifacts=sample_report.artifacts[:1], verdict="pass")
    assert "<details><summary>Warnings</summary>" in summary([judged_model(passing)])


# Through the commands


@pytest.fixture
def commands(gate_models, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("# before\n")

    def run(*options):
        return CliRunner().invoke(
            convert,
            [str(gate_models / "net.pt2"), "--out", str(tmp_path / "out"), "--max-size", "1kB", *options],
        )

    return run


def test_convert_annotates_summarizes_and_writes_junit(commands, tmp_path):
    result = commands("--ci", "--junit", str(tmp_path / "new" / "junit.xml"), "--quiet")
    assert result.exit_code == 1, result.output
    commands_found = [read_command(line) for line in result.stdout.splitlines()]
    assert [level for level, _, _ in commands_found] == [
        "error",
        "notice",
    ] and "--max-size" in commands_found[0][2]
    assert (tmp_path / "summary.md").read_text().startswith("# before\n### cidermill: fail\n")
    root = ElementTree.parse(tmp_path / "new" / "junit.xml").getroot()
    assert int(root.get("failures")) == 2 and root.find("testsuite").get("name") == "net"
    assert (tmp_path / "out" / "report.json").exists()


def test_json_stays_alone_on_standard_output(commands, tmp_path):
    result = commands("--ci", "--json")
    report = json.loads(result.stdout)
    assert report["schema"] == "cidermill.report/1"
    assert any(line.startswith("::error ") for line in result.stderr.splitlines())


def test_without_the_option_nothing_is_told(commands, tmp_path):
    assert "::" not in commands("--quiet").stdout and (tmp_path / "summary.md").read_text() == "# before\n"


def test_bad_input_is_annotated_too(commands, tmp_path):
    result = commands("--ci", "--quant", "int9")
    assert result.exit_code == 2
    (found,) = [read_command(line) for line in result.stdout.splitlines()]
    assert found[0] == "error" and "integers of 9 bits" in found[2] and not (tmp_path / "out").exists()


def test_a_summary_that_cannot_be_written_does_not_change_the_verdict(commands, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "summary.md"))
    result = commands("--ci", "--quiet")
    assert result.exit_code == 1 and "The summary was not written" in result.stderr


def test_a_summary_that_github_would_not_show_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    announce([], "a" * 2**19, False)
    announce([], "b" * (2**19 + 1), False)
    assert (tmp_path / "summary.md").read_text() == "a" * 2**19 and "1 MiB" in capsys.readouterr().err


def test_a_junit_file_that_cannot_be_written(commands, tmp_path):
    (tmp_path / "file").write_text("")
    result = commands("--quiet", "--junit", str(tmp_path / "file" / "junit.xml"))
    assert (
        result.exit_code == 2 and "The JUnit file" in result.stderr and "Everything else is." in result.stderr
    )
    assert (tmp_path / "out" / "report.json").exists()


def test_check_annotates_and_writes_junit(outputs, cidermill, edit, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    arguments = ("check", outputs / "int8", "--lock", tmp_path / "lock.json")
    assert cidermill(*arguments, "--update").exit_code == 0
    edit(outputs / "int8" / "report.json", lambda report: report["artifacts"][0].update(size_bytes=10**9))
    result = cidermill(*arguments, "--ci", "--quiet", "--junit", tmp_path / "check.xml")
    assert result.exit_code == 1
    found = [read_command(line) for line in result.stdout.splitlines()]
    assert [level for level, _, _ in found] == ["error", "notice"]
    assert found[0][1] == {"title": "net/coreml/int8"} and re.fullmatch(
        r"size_bytes: [\d,]+ bytes before, 1,000,000,000 bytes now\.", found[0][2]
    )
    suite = ElementTree.parse(tmp_path / "check.xml").getroot().find("testsuite")
    failed = [
        (case.get("classname"), case.get("name"))
        for case in suite.findall("testcase")
        if case.find("failure") is not None
    ]
    assert failed == [("net.coreml.int8", "size_bytes")] and int(suite.get("tests")) > 10
    assert "1,000,000,000 bytes now" in (tmp_path / "summary.md").read_text()


def test_a_check_without_a_lock_is_annotated(outputs, cidermill, tmp_path):
    result = cidermill("check", outputs / "int8", "--lock", tmp_path / "none.json", "--ci")
    assert result.exit_code == 2 and read_command(result.stdout.strip())[0] == "error"


def test_errors_are_user_errors_with_a_next_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--junit"):
        write_junit(tmp_path / "file" / "x.xml", "")
