"""What `verify` found in; what continuous integration reads out: GitHub annotations, a Markdown summary of
the job, JUnit XML."""

from collections.abc import Iterator

from ..gate.ci import annotation
from ..gate.junit import Case, Suite, xml_text
from ..gate.markdown import code, rows
from .verify import Verification


def annotations(result: Verification) -> list[str]:
    """An error for each file that is not as it was signed, and for each artifact that does not run; else one
    notice."""
    lines = [
        annotation("error", f"{result.bundle}: {case.name}", case.failure)
        for case in _cases(result)
        if case.failure
    ]
    return lines or [
        annotation("notice", "cidermill", f"{result.bundle}: {result.files} files are as they were made.")
    ]


def summary(result: Verification) -> str:
    """Markdown for $GITHUB_STEP_SUMMARY."""
    cells = [[code(case.name), code(case.failure)] for case in _cases(result) if case.failure]
    table = (
        rows(("file", "what is wrong"), cells) if cells else f"{result.files} files are as they were made.\n"
    )
    return f"### cidermill verify: {result.verdict}\n\n{table}\n"


def junit_xml(result: Verification) -> str:
    """One suite: a case for the files and the signature together, one for each problem, one for each artifact
    that was run."""
    signature = result.signature.status
    return xml_text(
        [
            Suite(
                result.bundle,
                tuple(_cases(result)),
                (("signature", signature), ("files", result.files)),
            )
        ]
    )


def _cases(result: Verification) -> Iterator[Case]:
    for problem in result.problems:
        yield Case("bundle", problem.file, f"{problem.file} {problem.problem}")
    if not result.problems:
        yield Case("bundle", "files and signature")
    if isinstance(result.runs, str):
        yield Case("bundle", "run", skipped=result.runs)
        return
    for run in result.runs:
        yield Case("bundle", f"run {run.variant}", run.problem)
