"""Suites of cases in, JUnit XML out, in the form that Jenkins, GitLab and Maven Surefire read.

<testsuites> of <testsuite name tests failures errors skipped time> with <properties> and <testcase classname
name time>, which may hold one <failure message type> or one <skipped message>: what all of those readers
share (Surefire's surefire-test-report.xsd; Jenkins' junit-10.xsd, where properties belong to suites only).
Nothing in it depends on the clock or the machine but `seconds`, which come from the report.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

# XML 1.0, 2.2: everything but these may stand in a document, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One thing that was judged. group: its classname; failure: why it fails, "" where it passes; skipped:
    why it was not judged."""

    group: str
    name: str
    failure: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Suite:
    name: str
    cases: tuple[Case, ...]
    properties: tuple[tuple[str, object], ...] = ()
    seconds: float = 0.0


def xml_text(suites: Sequence[Suite]) -> str:
    """A whole document, declared as UTF-8. Characters that XML cannot hold become U+FFFD."""
    cases = [case for suite in suites for case in suite.cases]
    root = ElementTree.Element(
        "testsuites", _attributes("cidermill", cases, sum(suite.seconds for suite in suites))
    )
    for suite in suites:
        _add_suite(root, suite)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_suite(root: ElementTree.Element, suite: Suite) -> None:
    element = ElementTree.SubElement(root, "testsuite", _attributes(suite.name, suite.cases, suite.seconds))
    if suite.properties:
        parent = ElementTree.SubElement(element, "properties")
        for name, value in suite.properties:
            ElementTree.SubElement(parent, "property", {"name": _legal(name), "value": _legal(value)})
    for case in suite.cases:
        entry = ElementTree.SubElement(
            element, "testcase", {"classname": _legal(case.group), "name": _legal(case.name), "time": "0"}
        )
        if case.failure:
            told = _legal(case.failure)
            ElementTree.SubElement(
                entry, "failure", {"message": told.partition("\n")[0], "type": "verdict"}
            ).text = told
        elif case.skipped:
            ElementTree.SubElement(entry, "skipped", {"message": _legal(case.skipped)})


def _attributes(name: str, cases: Sequence[Case], seconds: float) -> dict[str, str]:
    failures, skipped = (
        sum(bool(case.failure) for case in cases),
        sum(bool(case.skipped and not case.failure) for case in cases),
    )
    counts = {"tests": len(cases), "failures": failures, "errors": 0, "skipped": skipped}
    return {
        "name": _legal(name),
        **{key: str(count) for key, count in counts.items()},
        "time": f"{seconds:.3f}",
    }


def _legal(value: object) -> str:
    return _FORBIDDEN.sub("\ufffd", str(value))
