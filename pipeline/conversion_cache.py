"""Conversions that need not be done again: a Plan enters, a key over everything that decides its result
leaves; by it a finished folder is found."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.digest import content_of, content_of_files, digest_json, digest_model, digest_samples
from .output import REPORT_FILE
from .plan import Plan
from .report.json_files import json_text
from .report.records import Report
from .report.write import environment
from .stages import Stages
from .store import Cache, fetch_folder, make_room, store_folder

if TYPE_CHECKING:
    from ..models.capture import Captured
    from .corrections import Calibration

PLACES = ("model", "out", "force", "dry_run", "cache")  # of a Plan: say where and whether, not what
# limits (`limits`) that need no other conversion; --max-latency adds devices to it
JUDGED_AFTER = ("max_size_bytes", "min_ane_share")
FILES = (
    "models/**/*",
    "quantization/**/*",
    "converters/**/*",
    "validation/**/*",
    "pipeline/*",
    "pipeline/report/*",
    "pipeline/targets/*",
)


def conversion_key(plan: Plan, calibration: Calibration | None) -> str | None:
    """From the files' bytes, the options and the versions of the tools, without loading the model; None where
    code of the user has a part in it."""
    if plan.model_class is not None or plan.trust_pickle:
        return None
    if plan.samples is not None and (not isinstance(plan.samples, str) or ":" in plan.samples):
        return None
    samples = _file_digest(Path(plan.samples)) if plan.samples else None
    return digest_json(
        {"source": source_digest(plan.model), "samples": samples, **_decided_by(plan, calibration)}
    )


def captured_key(plan: Plan, calibration: Calibration | None, captured: Captured) -> str:
    """As `conversion_key`, from the captured graph, its tensors and the samples: whatever code made them."""
    program = captured.program
    source = {
        "program": digest_model(str(program.graph_module.code), {**program.state_dict, **program.constants}),
        "borders": f"{captured.inputs} {captured.outputs} {captured.source.sha256}",
        "card": dict(captured.source.card),
    }
    return digest_json(
        {
            "source": source,
            "samples": digest_samples(captured.samples.batches),
            **_decided_by(plan, calibration),
        }
    )


def recall(cache: Cache | None, key: str | None, plan: Plan, folder: Path, stages: Stages) -> Report | None:
    """Lay out in `folder` what an equal conversion has made before. -> its report, None where there is none.

    Its stages are marked as cached and keep the times that they took then.
    """
    if cache is None or key is None:
        return None
    with stages("cache") as step:
        if not fetch_folder(cache, key, folder):
            step.note = "nothing of an equal conversion"
            return None
        report = Report.from_json(folder)
        step.note = "found an equal conversion"
    source = replace(report.source, path=str(plan.model))
    return replace(
        report, source=source, stages=tuple(replace(stage, cached=True) for stage in report.stages)
    )


def remember(cache: Cache | None, key: str | None, plan: Plan, report: Report, folder: Path) -> None:
    """Keep a folder of artifacts, and their report before it is judged by limits, for `recall`."""
    if cache is None or key is None:
        return
    made = ", ".join(f"{artifact.target} {artifact.recipe}" for artifact in report.artifacts)
    content = {REPORT_FILE: json_text(report).encode("ascii")}
    store_folder(cache, key, f"{plan.name}: {made}", folder, lambda path: path.suffix != ".html", content)
    make_room(cache)


def _decided_by(plan: Plan, calibration: Calibration | None) -> dict[str, Any]:
    """What decides a conversion beside the model and the samples."""
    options = {name: value for name, value in vars(plan).items() if name not in (*PLACES, *JUDGED_AFTER)}
    options |= {"samples": None, "calibration": str(calibration), "name": plan.name}
    options["sensitivity"] = _file_digest(plan.sensitivity) if plan.sensitivity else None
    machine = {
        "system": platform.system(),
        "measured on": platform.node() if plan.measure and sys.platform == "darwin" else "",
        # they split the sums over samples (GPTQ): other last bits
        "threads": os.environ.get("OMP_NUM_THREADS") or os.cpu_count(),
    }
    return {
        "options": json.loads(json.dumps(options, default=str)),
        "environment": environment() | machine,
        "code": code_digest(),
    }


@cache
def code_digest() -> str:
    """Of cidermill's own files: a version number does not change while it is worked on."""
    root = Path(__file__).resolve().parent.parent
    files = [
        file
        for pattern in FILES
        for file in sorted(root.glob(pattern))
        if file.suffix in (".py", ".csv", ".json")
    ]
    return content_of_files(files, root).sha256


def source_digest(model: Path) -> str | None:
    """Of a file, or of the files of a folder with their names. What cannot be read gives None: loading it
    says why."""
    if not model.is_dir():
        return _file_digest(model)
    files = [file for file in sorted(model.iterdir()) if file.is_file() and not file.name.startswith(".")]
    return digest_json({file.name: _file_digest(file) for file in files})


def _file_digest(file: Path) -> str | None:
    try:
        return content_of(file).sha256 if file.is_file() else None
    except OSError:
        return None
