"""A report in; report.json (schema cidermill.report/1, docs/design.md) and report.html out."""

import functools
import platform
from importlib import metadata
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ..output import REPORT_FILE, write_whole
from ..targets import libraries
from . import app_texts, summaries
from .in_a_row import in_a_row_text
from .json_files import write_json
from .records import REPORT_PAGE, Report
from .size_summaries import size_rows

if TYPE_CHECKING:
    import jinja2


def environment() -> dict[str, str]:
    """Interpreter, machine and installed versions, read without importing any of the packages."""
    versions = {
        "python": platform.python_version(),
        "arch": platform.machine(),
        "os": platform.platform(terse=True),
    }
    for package in libraries():
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def write_html(report: Report, path: Path) -> None:
    """Write report.html whole or not at all: one file that loads nothing."""
    content = html_text(report).encode("utf-8", "backslashreplace")
    write_whole(path, lambda stream: stream.write(content))


def write_report(report: Report, folder: Path) -> None:
    """report.json and report.html."""
    write_json(report, folder / REPORT_FILE)
    write_html(report, folder / REPORT_PAGE)


def html_text(report: Report) -> str:
    """The report as one HTML page. Every value is escaped: names come from files that we did not write."""
    name = PurePath(report.source.path).name or report.source.path
    return page_templates().get_template("report.html.j2").render(report=report, name=name)


@functools.cache
def page_templates() -> "jinja2.Environment":
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
    names = {
        "summaries": summaries,
        "app_texts": app_texts,
        "size_rows": size_rows,
        "in_a_row_text": in_a_row_text,
    }
    env.globals |= {**names, "limits": limits}
    return env
