"""What `verify` found in; what continuous integration reads out: GitHub annotations, a Markdown summary of
the job, JUnit XML."""

from collections.abc import Iterator

from ..gate.ci import annotation
from ..gate.junit import Case, Suite, xml_text
from ..report.markdown import code, rows


def annotations(result: dict) -> list[str]:
    """An error for each file that is not as it was signed, and for each artifact that does not run; else one
    notice."""
    lines = [
        annotation("error", f"{result['bundle']}: {case.name}", case.failure)
        for case in _cases(result)
        if case.failure
    ]
    return lines or [
        annotation(
            "notice", "cidermill", f"{result['bundle']}: {result['files']} files are as they were made."
        )
    ]


def summary(result: dict) -> str:
    """Markdown for $GITHUB_STEP_SUMMARY."""
    cells = [[code(case.name), code(case.failure)] for case in _cases(result) if case.failure]
    table = (
        rows(("file", "what is wrong"), cells)
        if cells
        else f"{result['files']} files are as they were made.\n"
    )
    return f"### cidermill verify: {result['verdict']}\n\n{table}\n"


def junit_xml(result: dict) -> str:
    """One suite: a case for the files and the signature together, one for each problem, one for each artifact
    that was run."""
    signature = result["signature"].get("status", "")
    return xml_text(
        [
            Suite(
                result["bundle"],
                tuple(_cases(result)),
                (("signature", signature), ("files", result["files"])),
            )
        ]
    )


def _cases(result: dict) -> Iterator[Case]:
    for one in result["problems"]:
        yield Case("bundle", one["file"], f"{one['file']} {one['problem']}")
    if not result["problems"]:
        yield Case("bundle", "files and signature")
    if not isinstance(result["runs"], list):
        yield Case("bundle", "run", skipped=str(result["runs"]))
        return
    for one in result["runs"]:
        yield Case("bundle", f"run {one['variant']}", one["problem"])
