"""The JSON Schemas that ship in the wheel are those of the records, and say no to what the records refuse."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from cidermill.pipeline.commands.schemas import FOLDER, RECORDS, schema_path, schema_text
from cidermill.pipeline.report.records import SCHEMA


@pytest.mark.parametrize("name", RECORDS)
def test_the_shipped_schema_is_that_of_the_records(name):
    """After a change of the records: python -m cidermill.pipeline.commands.schemas"""
    assert schema_path(name).read_text() == schema_text(name)
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text(name)))


def test_the_schemas_are_in_the_wheel():
    assert {path.name for path in FOLDER.iterdir()} == {schema_path(name).name for name in RECORDS}
    project = tomllib.loads(Path(__file__).parents[3].joinpath("pyproject.toml").read_text())
    assert "schemas/*.json" in project["tool"]["setuptools"]["package-data"]["cidermill.pipeline.report"]


def test_the_schema_of_reports_takes_a_report_and_refuses_a_damaged_one(report_content):
    validator = jsonschema.Draft202012Validator(json.loads(schema_path(SCHEMA).read_text()))
    assert validator.is_valid(report_content)
    report_content["artifacts"][0]["size_bytes"] = "large"
    assert not validator.is_valid(report_content)
