import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cidermill.converters.artifact import WrittenArtifact
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.pipeline.examine import Examination
from cidermill.pipeline.judge import Judgement
from cidermill.pipeline.report import summaries
from cidermill.pipeline.report import write as report
from cidermill.pipeline.report.compose import Findings, compose
from cidermill.pipeline.report.json_files import to_builtins, write_json
from cidermill.pipeline.report.records import Latency, Placement, Report, Stage, Validation
from cidermill.pipeline.yardstick import Yardstick
from cidermill.validation.judge.compare import OutputError
from cidermill.validation.records import Compression, EstimatedTimes, MeasuredTimes

ARTIFACT_KEYS = [
    "target",
    "recipe",
    "path",
    "size_bytes",
    "sha256",
    "verdict",
    "validation",
    "compression",
    "placement",
    "latency",
    "warnings",
]


def small_report(folder: Path, verdicts=("pass",)) -> Report:
    spec = TensorSpec("x", (1, 4), "float32")
    source = Source(Path("net.pt"), "module", "ab", None, (spec,))
    samples = Samples("synthetic", ({},), 0)
    yardstick = Yardstick(source, (spec,), (spec,), samples, (), {}, (), (), {}, parameters=20)
    error = OutputError(
        "y",
        (1, 4),
        psnr_db=np.float64(51.5),
        cosine=0.99,
        max_abs_error=np.float32(0.5),
        vacuous=np.bool_(False),
    )
    examinations = [
        Examination(
            WrittenArtifact("coreml", "int8", folder / f"net{i}.mlpackage", 60, "cd", "float16", ("a\nb",)),
            Validation("reference", (error,), (error,), 40.0),
            Compression(weights=(), bytes={}),
            Placement(source="estimate", device="iPhone 12", units={}, ops=()),
            Latency("estimate", ()),
            (),
            (),
        )
        for i in range(len(verdicts))
    ]
    judgements = [Judgement(verdict, ["a\nb", "c"]) for verdict in verdicts]
    stages = [Stage("load", 1.5, 2_000_000)]
    return compose(Findings(yardstick, examinations, judgements), stages, folder)


def test_names_are_those_of_the_schema(tmp_path):
    built = small_report(tmp_path).to_json()
    assert list(built) == ["schema", "version", "verdict", "source", "environment", "stages", "artifacts"]
    assert built["schema"] == "cidermill.report/1" and built["verdict"] == "pass"
    assert list(built["source"]) == ["path", "sha256", "format", "parameters", "inputs", "outputs", "samples"]
    assert list(built["stages"][0]) == ["name", "seconds", "peak_rss_bytes", "cached"]
    assert list(built["artifacts"][0]) == ARTIFACT_KEYS
    assert list(built["artifacts"][0]["validation"]) == [
        "runner",
        "conversion",
        "compression",
        "tolerance_db",
        "total",
    ]
    assert built["artifacts"][0]["path"] == "net0.mlpackage" and built["artifacts"][0]["warnings"] == [
        "a\nb",
        "c",
    ]
    assert {"python", "arch", "os", "torch", "coremltools", "executorch"} <= set(built["environment"])


@pytest.mark.parametrize(
    ("verdicts", "expected"), [(("pass", "pass"), "pass"), (("pass", "fail"), "fail"), ((), "fail")]
)
def test_one_failing_artifact_fails_the_report(tmp_path, verdicts, expected):
    assert small_report(tmp_path, verdicts).verdict == expected


def refuse(token):
    raise AssertionError(f"{token} is not JSON")


def test_json_is_strict_and_equal_reports_give_equal_bytes(report_content, tmp_path):
    report_content["artifacts"][0]["validation"]["conversion"][0]["psnr_db"] = math.inf
    report_content["artifacts"][0]["validation"]["compression"][0]["cosine"] = np.float32("nan")
    report_content["artifacts"][0]["path"] = Path("net\udc80.mlpackage")
    for name in ("a.json", "b.json"):
        write_json(report_content, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert read["artifacts"][0]["validation"]["conversion"][0]["psnr_db"] is None
    assert read["artifacts"][1] == report_content["artifacts"][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_a_failed_write_leaves_the_earlier_report(report_content, tmp_path):
    path = tmp_path / "report.json"
    write_json(report_content, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json({**report_content, "source": object()}, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


class Page(HTMLParser):
    VOID = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.titles = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.titles += [value for key, value in attrs if key == "title"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_html_shows_the_report(sample_report):
    page = Page(report.html_text(sample_report))
    assert not page.open
    for text in (
        "vit-base",
        "86.6 M parameters",
        "346 MB in float32",
        "87.3 MB",
        "4.0x smaller",
        "66.8 dB",
        "31.0 dB",
        "ANE 93 % of operations",
    ):
        assert text in page.words
    for text in (
        "4.12 ms (2.88–5.97)",
        "MacBook Air",
        "8.02–8.03 bits",
        "a norm: 1-dimensional",
        "cast to int32 has no Neural Engine form",
        "from the cache",
    ):
        assert text in page.words
    assert "→ Convert with --quant float32" in page.words and "2 values are NaN or infinite" in page.words
    assert "coremltools 9.0" in page.words and "An estimate, not a measurement" in page.words
    assert sum(": linear in vit.encoder.layer[" in title for title in page.titles) > 100
    assert page.words.count("vit.encoder.layer.3.key.weight") == 2


def test_html_loads_nothing(sample_report):
    text = report.html_text(sample_report)
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import|src=", text)
    assert all(value.startswith("#") for key, value in page.attributes if key == "href")


HOSTILE = '<script>alert("x")</script>&\'"'


def poison(value):
    """Every string of a report that a file could have chosen, made hostile."""
    if value in ("estimate", "synthetic"):
        return value
    if isinstance(value, dict):
        keep = {"unit", "verdict", "dtype", "schema", "version"}
        return {key: item if key in keep else poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_html_escapes_everything(report_content):
    page = Page(report.html_text(Report.from_json(poison(report_content))))
    assert "script" not in page.tags and not page.open
    assert any(title.startswith(HOSTILE) for title in page.titles) and HOSTILE in page.words
    assert not [key for key, _ in page.attributes if key.startswith("on")]


def test_html_of_a_report_of_an_empty_program(tmp_path):
    built = small_report(tmp_path)
    assert "60 B" in Page(report.html_text(built)).words
    assert "No artifact was written" in report.html_text(dataclasses.replace(built, artifacts=()))


def test_html_of_outputs_that_could_not_be_compared(report_content):
    broken = to_builtins(
        OutputError("logits", (1, 2), problem="the artifact gives no output 'logits'; it gives 'var_9'")
    )
    report_content["artifacts"][0]["validation"]["conversion"] = [broken]
    report_content["artifacts"][0]["latency"]["devices"] = []
    assert "it gives 'var_9'" in Page(report.html_text(Report.from_json(report_content))).words


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (summaries.size_text, 0, "0 B"),
        (summaries.size_text, 999, "999 B"),
        (summaries.size_text, 999_999, "1.00 MB"),
        (summaries.size_text, 87_302_144, "87.3 MB"),
        (summaries.size_text, 4_120_000_000, "4.12 GB"),
        (summaries.size_text, None, "–"),
        (summaries.db_text, 38.44, "38.4 dB"),
        (summaries.db_text, 200.0, "exact"),
        (summaries.db_text, None, "–"),
        (summaries.ms_text, 0.0123, "12.3 µs"),
        (summaries.ms_text, 4.123, "4.12 ms"),
        (summaries.ms_text, 0.0, "0.00 ms"),
        (summaries.ms_text, 3e-8, "<0.01 µs"),
        (summaries.ms_text, 1234.0, "1.23 s"),
        (summaries.seconds_text, 9.96, "10.0 s"),
        (summaries.seconds_text, 75, "1 min 15 s"),
        (summaries.seconds_text, 119.7, "2 min 0 s"),
        (summaries.percent_text, 0.983, "98 %"),
        (summaries.percent_text, 0.0004, "<1 %"),
        (summaries.percent_text, 0.9996, ">99 %"),
        (summaries.percent_text, 1.0, "100 %"),
        (summaries.percent_text, 0, "0 %"),
        (summaries.count_text, 1234567, "1,234,567"),
        (summaries.parameters_text, 86_567_656, "86.6 M"),
        (summaries.number_text, 0.99999951, "0.9999995"),
        (summaries.number_text, 0.00123456, "0.001235"),
        (summaries.bits_text, 8.0234, "8.02 bits"),
        (summaries.split_warning, "What.\nDo this\n and that.", ("What.", "Do this and that.")),
        (summaries.times_text, EstimatedTimes(1500.0, 1000.0, 2000.0, {}), "1.50 s (1.00–2.00)"),
        (summaries.times_text, MeasuredTimes("all", ms=3.0), "3.00 ms"),
    ],
)
def test_figures_carry_units(function, value, text):
    assert function(value) == text


def test_worst_is_unknown_where_one_output_is_unknown():
    three, two, unknown = (OutputError("y", (1,), psnr_db=decibels) for decibels in (3.0, 2.0, None))
    assert summaries.worst_psnr_db([three, two]) == 2.0
    assert summaries.worst_psnr_db([three, unknown]) is None
    assert summaries.worst_psnr_db([]) is None


def test_unit_shares_by_operations_and_time(sample_report):
    ane, gpu, cpu = summaries.unit_summaries(sample_report.artifacts[0].placement)
    assert (ane.ops, gpu.ops, cpu.ops) == (280, 8, 12)
    assert sum(share.ops_share for share in (ane, gpu, cpu)) == pytest.approx(1)
    assert sum(share.time_share for share in (ane, gpu, cpu)) == pytest.approx(1)


def test_html_shows_what_was_measured_beside_the_estimate(report_content):
    estimate = {"ms": 1.0, "low_ms": 0.8, "high_ms": 1.25, "parts_ms": {"ane": 1.0}}
    units = [
        {
            "compute_units": "all",
            "ms": 1.5,
            "low_ms": 1.4,
            "high_ms": 1.6,
            "first_ms": 9.0,
            "cold_load_ms": 512.0,
            "load_ms": 31.0,
            "compile_ms": 88.0,
            "runs": 100,
            "estimate": estimate,
        },
        {
            "compute_units": "cpu_only",
            "problem": "crashed: signal 11 (SIGSEGV) in cold load",
            "compile_ms": 87.0,
        },
    ]
    machine = {"chip": "M2 Pro", "model": "Mac14,9", "os": "macOS 15.5"}
    report_content["artifacts"][0]["latency"]["measured"] = {
        "source": "measured",
        "machine": machine,
        "estimator": "1",
        "units": units,
    }
    report_content["artifacts"][1]["latency"]["measured"] = "not run: needs macOS"
    page = report.html_text(Report.from_json(report_content))
    for words in (
        "Measured on this M2 Pro",
        "1.50 ms (1.40–1.60)",
        "512 ms",
        "1.00 ms (0.80–1.25)",
        "✗ crashed: signal 11",
        "not run: needs macOS.",
    ):
        assert words in page
