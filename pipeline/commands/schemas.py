"""Records in, their JSON Schemas out: for those who read report.json, the lock, a bundle's manifest and a
study in other languages.

`python -m cidermill.pipeline.commands.schemas` writes the files that ship in the wheel,
pipeline/report/schemas."""

import json
from pathlib import Path

import msgspec

from ..bundle.manifest import SCHEMA as BUNDLE
from ..bundle.manifest import Manifest
from ..gate.lock import SCHEMA as LOCK
from ..gate.lock import Lock
from ..report.records import SCHEMA as REPORT
from ..report.records import Report
from ..study.records import StudyRow
from ..study.results import SCHEMA as STUDY

FOLDER = Path(__file__).parents[1] / "report" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# a study's: of each row but the first
RECORDS = {REPORT: Report, LOCK: Lock, BUNDLE: Manifest, STUDY: StudyRow}


def schema_path(name: str) -> Path:
    """ "cidermill.report/1" -> .../cidermill.report-1.json"""
    return FOLDER / f"{name.replace('/', '-')}.json"


def schema_text(name: str) -> str:
    """The JSON Schema of what has the schema `name`."""
    schema = {"$schema": DIALECT, "title": name} | msgspec.json.schema(RECORDS[name])
    return json.dumps(schema, indent=1) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in RECORDS:
        schema_path(name).write_text(schema_text(name))


if __name__ == "__main__":
    main()
