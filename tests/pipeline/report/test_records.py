"""Dicts become records and dicts again at the border of a report, and nothing is lost there."""

import json

import pytest

from cidermill.models.errors import UserError
from cidermill.pipeline.report.records import Report
from cidermill.pipeline.report.write import html_text


def test_records_have_the_keys_of_the_file(report_content, sample_report):
    report = sample_report
    assert report.to_json() == report_content and list(report.to_json()) == list(report_content)
    assert report.verdict == "fail" and report.artifacts[0].size_bytes == 87_302_144
    assert report.artifacts[0].validation.conversion[0].psnr_db == 71.23
    assert report.artifacts[0].validation.native == "not run: needs macOS"
    assert report.artifacts[0].placement.units["ane"].share > 0.9
    assert not report.budget and not report.predicted


def test_a_path_a_folder_and_a_dict_are_the_same_report(report_content, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report_content))
    report = Report.from_json(report_content)
    assert report == Report.from_json(tmp_path) == Report.from_json(str(tmp_path / "report.json"))
    assert Report.from_json(report.to_json()) == report


# what reports of earlier versions lack
NEWER = {
    "artifacts": ("predicted", "limits"),
    "validation": ("total", "native"),
    "placement": ("boundaries", "measured"),
    "units": ("ms", "bytes"),
    "ops": ("bytes", "advice"),
    "latency": ("measured",),
    "devices": ("basis", "source"),
    "compression": ("verdict",),
    "weights": ("snr_db", "decoded", "stored_as"),
}


def test_an_earlier_report_is_read(report_content):
    for artifact in report_content["artifacts"]:
        placement, compression = artifact["placement"], artifact["compression"]
        rows = {
            "artifacts": [artifact],
            "validation": [artifact["validation"]],
            "placement": [placement],
            "units": placement["units"].values(),
            "ops": placement["ops"],
            "latency": [artifact["latency"]],
            "devices": artifact["latency"]["devices"],
            "compression": [compression],
            "weights": compression["weights"],
        }
        for name, keys in NEWER.items():
            for row in rows[name]:
                for key in keys:
                    del row[key]
    report = Report.from_json(report_content)
    assert report.artifacts[0].latency.devices[0].source == "estimate"
    assert not report.artifacts[0].limits and not report.artifacts[0].compression.verdict
    assert "87.3 MB" in html_text(report)


def unlike(**changes):
    return lambda content: content.update(changes)


REFUSED = {
    "a newer schema": (unlike(schema="cidermill.report/2"), "is from a newer cidermill"),
    "another schema": (unlike(schema="cidermill.lock/1"), "its schema is 'cidermill.lock/1'"),
    "no artifacts": (lambda content: content.pop("artifacts"), "missing required field `artifacts`"),
    "a verdict of its own": (unlike(verdict="perhaps"), "Invalid enum value 'perhaps' - at `$.verdict`"),
    "a size in words": (
        lambda content: content["artifacts"][1].update(size_bytes="large"),
        "The report is a damaged report: Expected `int`, got `str` - at `$.artifacts[1].size_bytes`.",
    ),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_report_is_refused_in_words(report_content, change, said):
    change(report_content)
    with pytest.raises(UserError) as refusal:
        Report.from_json(report_content)
    assert said in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError) as refusal:
        Report.from_json(tmp_path / "none.json")
    assert f"{tmp_path / 'none.json'} cannot be read: No such file or directory" in str(refusal.value)
