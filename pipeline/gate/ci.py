"""Reports of `convert` in; what continuous integration reads out: GitHub annotations, a Markdown summary of
the job, JUnit XML."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from ..limits import NOT_APPLICABLE, got_text, limit_text
from ..report import summaries as fig
from ..report.markdown import code, details, rows
from ..terminal.text import clean
from .junit import Case, Suite, xml_text

LEVELS = ("error", "warning", "notice")


def annotation(level: str, title: str, message: str) -> str:
    """One workflow command: "::error title=...::message", a line that GitHub Actions shows beside the job.

    Escaped as docs.github.com, "Workflow commands for GitHub Actions", and its toolkit (`escapeData`,
    `escapeProperty`) have it.
    """
    if level not in LEVELS:
        raise ValueError(f"{level!r} is no annotation: {', '.join(LEVELS)}")
    title = _escaped(clean(title)).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={title}::{_escaped(clean(message, keep_lines=True))}"


def annotations(reports: Sequence[dict]) -> list[str]:
    """An error for each artifact that fails, a warning for each warning of those that pass, and one notice of
    how many pass.

    Errors come first: GitHub keeps ten of each level for a step.
    """
    artifacts = [
        (label(report, artifact), artifact) for report in reports for artifact in report["artifacts"]
    ]
    failed = [(name, artifact) for name, artifact in artifacts if artifact["verdict"] != "pass"]
    passed = [(name, artifact) for name, artifact in artifacts if artifact["verdict"] == "pass"]
    lines = [
        annotation(
            "error",
            f"{name} fails",
            "\n".join(artifact["warnings"]) or "Its verdict is a fail: see report.html.",
        )
        for name, artifact in failed
    ]
    lines += [
        annotation("warning", name, warning) for name, artifact in passed for warning in artifact["warnings"]
    ]
    lines += [annotation("notice", "cidermill", f"{len(passed)} of {len(artifacts)} artifacts pass.")] * bool(
        artifacts
    )
    return lines


def summary(reports: Sequence[dict]) -> str:
    """Markdown for $GITHUB_STEP_SUMMARY: a row for each artifact, then the warnings, folded where nothing
    fails."""
    verdict = "pass" if reports and all(report["verdict"] == "pass" for report in reports) else "fail"
    headings = ("model", "artifact", "size", "conversion", "compression", "latency", "verdict")
    cells = [_cells(report, artifact) for report in reports for artifact in report["artifacts"]]
    parts = [f"### cidermill: {verdict}\n", rows(headings, cells, right=headings[2:5])]
    warnings = "".join(_warnings(report, artifact) for report in reports for artifact in report["artifacts"])
    if warnings:
        parts.append(warnings if verdict == "fail" else details("Warnings", warnings))
    return "\n".join(parts) + "\n"


def junit_xml(reports: Sequence[dict]) -> str:
    """A suite for each report, a case for each check of each artifact."""
    return xml_text([suite_of(report) for report in reports])


def suite_of(report: dict) -> Suite:
    cases = tuple(case for artifact in report["artifacts"] for case in _cases(report, artifact))
    environment = report.get("environment") or {}
    properties = [
        ("source.sha256", report["source"]["sha256"]),
        ("cidermill", report.get("version", "")),
        *environment.items(),
    ]
    properties += [entry for artifact in report["artifacts"] for entry in _properties(artifact)]
    return Suite(
        model_name(report),
        cases,
        tuple(properties),
        sum(stage["seconds"] for stage in report.get("stages") or []),
    )


def model_name(report: dict) -> str:
    """What the artifacts are called by: the model's file or folder without its suffix; in a build, the
    model's name in its file ("name")."""
    if "name" in report:
        return report["name"]
    artifacts = report["artifacts"]
    return (
        PurePath(artifacts[0]["path"]).name.split(".")[0]
        if artifacts
        else PurePath(report["source"]["path"]).name.split(".")[0]
    )


def label(report: dict, artifact: dict) -> str:
    return f"{model_name(report)} {artifact['target']} {fig.recipe_text(artifact['recipe'])}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _cells(report: dict, artifact: dict) -> list[str]:
    validation, devices = (
        artifact.get("validation") or {},
        (artifact.get("latency") or {}).get("devices") or [],
    )
    errors = [
        fig.db_text(fig.worst(validation.get(kind) or [], "psnr_db"))
        for kind in ("conversion", "compression")
    ]
    latency = f"{fig.band_text(devices[0])} on {code(devices[0]['device'])}" if devices else fig.NONE
    name = f"{code(artifact['target'])} {code(fig.recipe_text(artifact['recipe']))}"
    verdict = "pass" if artifact["verdict"] == "pass" else "**fail**"
    return [code(model_name(report)), name, fig.size_text(artifact["size_bytes"]), *errors, latency, verdict]


def _warnings(report: dict, artifact: dict) -> str:
    told = [fig.split_warning(warning) for warning in artifact["warnings"]]
    return "".join(
        f"- {code(label(report, artifact))}: {code(what)}{f'<br>{code(following)}' if following else ''}\n"
        for what, following in told
    )


def _cases(report: dict, artifact: dict) -> Iterator[Case]:
    """verdict: the artifact as a whole, with everything that was said of it; then each check by itself."""
    group = f"{model_name(report)}.{artifact['target']}.{fig.recipe_text(artifact['recipe'])}"
    said = "\n".join(artifact["warnings"]) or "The verdict is a fail."
    yield Case(group, "verdict", said if artifact["verdict"] != "pass" else "")
    validation = artifact.get("validation") or {}
    yield from _conversion(group, "conversion", validation, validation.get("tolerance_db"))
    native = validation.get("native")
    if isinstance(native, dict):
        yield from _conversion(group, "conversion (native)", native, native.get("tolerance_db"))
    elif native:
        yield Case(group, "conversion (native)", skipped=native)
    weights = artifact.get("compression") or {}
    if "verdict" in weights:
        wrong = [entry["name"] for entry in weights["weights"] if entry.get("decoded") == "differs"]
        yield Case(
            group,
            "stored weights",
            f"decode to other values: {', '.join(wrong)}" if weights["verdict"] != "pass" else "",
        )
    for row in artifact.get("limits") or []:
        broken = f"{got_text(row)}; the limit is {limit_text(row)}" if row["verdict"] == "fail" else ""
        yield Case(group, limit_text(row), broken, NOT_APPLICABLE if row["verdict"] == NOT_APPLICABLE else "")


def _conversion(group: str, name: str, validation: dict, tolerance_db: float | None) -> Iterator[Case]:
    for error in validation.get("conversion") or []:
        problem = fig.error_problem(error, tolerance_db)
        told = f"{fig.db_text(error['psnr_db'])}: {problem}" if problem else ""
        yield Case(group, f"{name} of {error['output']}", told)


def _properties(artifact: dict) -> Iterator[tuple[str, object]]:
    name = f"{artifact['target']}.{fig.recipe_text(artifact['recipe'])}"
    yield from ((f"{name}.{key}", artifact[key]) for key in ("size_bytes", "sha256"))
    validation = artifact.get("validation") or {}
    for kind in ("conversion", "compression"):
        yield from (
            (f"{name}.{kind}.psnr_db[{error['output']}]", error["psnr_db"])
            for error in validation.get(kind) or []
        )
    yield from (
        (f"{name}.latency_ms[{row['device']}]", row["ms"])
        for row in (artifact.get("latency") or {}).get("devices") or []
    )
