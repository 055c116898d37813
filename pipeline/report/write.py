"""What the stages found in; report.json (schema cidermill.report/1, docs/design.md) and report.html out.

The sections are plain dicts, so that a report read back from disk renders like a fresh one.
"""

import functools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from ... import __version__
from ..output import write_whole
from . import summaries as figures
from .json_files import to_builtins, write_json
from .records import SCHEMA, Stage

PACKAGES = ("torch", "coremltools", "executorch", "transformers", "numpy")


def environment() -> dict:
    """Interpreter, machine and installed versions, read without importing any of the packages."""
    versions = {
        "python": platform.python_version(),
        "arch": platform.machine(),
        "os": platform.platform(terse=True),
    }
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def source_section(source, samples, inputs: Iterable, outputs: Iterable, parameters: int) -> dict:
    """source: models.Source; samples: models.Samples; inputs, outputs: models.TensorSpec; parameters: number
    of weights' elements."""
    return {
        "path": str(source.path),
        "sha256": source.sha256,
        "format": source.format,
        "parameters": parameters,
        "inputs": [spec.as_json() for spec in inputs],
        "outputs": [spec.as_json() for spec in outputs],
        "samples": samples.as_json(),
    }


def validation_section(
    runner: str, conversion: Sequence, compression: Sequence, tolerance_db: float, total: Sequence = ()
) -> dict:
    """runner: "native", "reference" or "not run: reason"; conversion, compression, total (both in one):
    compare.OutputError per output."""
    return {
        "runner": runner,
        "conversion": [*conversion],
        "compression": [*compression],
        "tolerance_db": tolerance_db,
        "total": [*total],
    }


def artifact_section(
    artifact, folder: Path, verdict: str, sections: Mapping[str, Any], warnings: Sequence[str] = ()
) -> dict:
    """artifact: converters.WrittenArtifact; folder: where report.json will lie; sections: validation, compression,
    placement, latency.

    A warning's first line says what is the matter, its further lines what to do about it.
    """
    return {
        "target": artifact.target,
        "recipe": artifact.recipe,
        "path": PurePath(os.path.relpath(artifact.path, folder)).as_posix(),
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "verdict": verdict,
        **{name: sections.get(name) for name in ("validation", "compression", "placement", "latency")},
        "warnings": list(dict.fromkeys([*artifact.warnings, *warnings])),
    }


def build_report(source: dict, stages: Sequence[Stage], artifacts: Sequence[dict], environment: dict) -> dict:
    """The whole report as JSON types. It passes when it holds at least one artifact and every artifact
    passes."""
    passed = bool(artifacts) and all(artifact["verdict"] == "pass" for artifact in artifacts)
    return to_builtins(
        {
            "schema": SCHEMA,
            "version": __version__,
            "verdict": "pass" if passed else "fail",
            "source": source,
            "environment": environment,
            "stages": list(stages),
            "artifacts": list(artifacts),
        }
    )


def write_html(report: dict, path: Path) -> None:
    """Write report.html whole or not at all: one file that loads nothing."""
    content = html_text(report).encode("utf-8", "backslashreplace")
    write_whole(path, lambda stream: stream.write(content))


def write_report(report: dict, folder: Path) -> None:
    """report.json and report.html."""
    write_json(report, folder / "report.json")
    write_html(report, folder / "report.html")


def html_text(report: dict) -> str:
    """The report as one HTML page. Every value is escaped: names come from files that we did not write."""
    report = to_builtins(report)
    name = PurePath(report["source"]["path"]).name or report["source"]["path"]
    return page_templates().get_template("report.html.j2").render(report=report, name=name)


@functools.cache
def page_templates() -> Any:
    """jinja2's environment for the pages of reports and studies; it keeps what it has compiled."""
    import jinja2

    from .. import limits

    here = Path(__file__).parent
    loader = jinja2.FileSystemLoader([here, here.parent / "study"])
    env = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    env.globals |= {"fig": figures, "limits": limits}
    return env
