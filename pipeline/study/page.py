"""A study's folder enters, study.html leaves: one file that loads nothing, with the scatter, the layers, the
trials and any two side by side.

What the page's script shows is put together here as one dict (`page_data`); study.js.j2 draws it and computes
only differences.
"""

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import numpy as np
import numpy.typing as npt

from ...models.decibels import decibels
from ...models.errors import UserError
from ..output import write_whole
from ..report import summaries
from ..report.json_files import to_builtins
from ..report.records import REPORT_FILE
from ..report.write import page_templates
from .constraints import parse_constraints
from .pictures import difference_coded, factor_for, png_url, shrink
from .records import BestTrial, StudyRow
from .results import (
    FIGURES,
    Study,
    best_of,
    error_of,
    first_line,
    is_exact,
    latency_text,
    load_study,
    measured_by_metric,
)

if TYPE_CHECKING:
    from ...quantization.sensitivity_table import Sensitivities

PAGE = "study.html"
Picture = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TrialWeight:
    name: str
    realised: str
    bits_per_weight: float | None = None
    snr_db: float | None = None


@dataclass(frozen=True)
class TrialCompression:
    weights: tuple[TrialWeight, ...] = ()


@dataclass(frozen=True)
class TrialArtifact:
    target: str
    compression: TrialCompression = TrialCompression()


@dataclass(frozen=True)
class TrialSource:
    sha256: str = ""


@dataclass(frozen=True)
class TrialReport:
    """As much of a trial's report.json as the page shows."""

    source: TrialSource = TrialSource()
    artifacts: tuple[TrialArtifact, ...] = ()


def write_page(folder: Path) -> Path:
    """Write study.html whole or not at all. Raises UserError where the folder is no study."""
    path = folder / PAGE
    content = html_text(load_study(folder)).encode("utf-8", "backslashreplace")
    write_whole(path, lambda stream: stream.write(content))
    return path


def html_text(study: Study) -> str:
    """Every value is escaped: names come from files that we did not write. Equal studies give equal text."""
    from plotly.offline import get_plotlyjs

    data, notes = page_data(study)
    groups = list(dict.fromkeys((one["model"], one["target"]) for one in data["trials"]))
    by_size = sorted(
        data["trials"],
        key=lambda one: (
            groups.index((one["model"], one["target"])),
            one["size_bytes"] or math.inf,
            one["trial"],
        ),
    )
    return (
        page_templates()
        .get_template("study.html.j2")
        .render(
            header=study.header,
            data=data,
            rows=by_size,
            notes=notes,
            counts=_counts(study),
            best=_best(study),
            plotly=get_plotlyjs(),
            data_json=script_json(data),
            title=", ".join(study.models) if len(study.models) < 4 else f"{len(study.models)} models",
        )
    )


def script_json(data: Any) -> str:
    """JSON that is safe inside <script>: no "<", "&" or line separators, so that no name can end the
    element."""
    text = json.dumps(to_builtins(data), separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _counts(study: Study) -> dict[str, Any]:
    return {
        "trials": len(study.rows),
        "passed": sum(row.passed for row in study.rows),
        "failing": sum(row.verdict == "fail" and row.state == "done" for row in study.rows),
        "failed": sum(row.state == "failed" for row in study.rows),
        "front": len(study.front),
    }


def _best(study: Study) -> tuple[BestTrial, ...]:
    """For each model its best trial within the constraints that the study was made with; without any,
    nothing."""
    if not study.header.constraints:
        return ()
    return best_of(study, parse_constraints(study.header.constraints)).models


def page_data(study: Study) -> tuple[dict[str, Any], list[str]]:
    """-> (what the script draws, notes on what could not be read)."""
    notes: list[str] = []
    reports = {row.trial: _report(study.folder, row, notes) for row in study.rows if row.state == "done"}
    by_metric = measured_by_metric(study.rows)
    on_front = study.front
    layers = {model: _layers(study.of_model(model), reports) for model in study.models}
    return {
        "trials": [_trial(row, row.trial in on_front, study.devices) for row in study.rows],
        "models": study.models,
        "targets": list(dict.fromkeys(row.target for row in study.rows)),
        "devices": study.devices,
        "by_metric": by_metric,
        "goal": study.goal,
        "layers": layers,
        "heat": [
            heat
            for model in study.models
            if (heat := _heat(study, model, layers[model], _tables(study, model, reports, notes)))
        ],
        "pictures": _pictures(study, by_metric, notes),
    }, notes


def _trial(row: StudyRow, on_front: bool, devices: list[str]) -> dict[str, Any]:
    """One trial: its figures as numbers and, in `texts`, as people read them."""
    latencies = {latency.device: latency for latency in row.latencies}
    numbers = {key: row.figure(key) for key in FIGURES}
    return {
        **{key: getattr(row, key) for key in ("trial", "model", "target", "recipe", "state", "verdict")},
        **numbers,
        "short": summaries.recipe_text(row.recipe),
        "exact": is_exact(row),
        "front": on_front,
        "reason": first_line(row.reason),
        "report": (quote(row.report) if row.report else None),  # a ":" is coded as well: nothing but a path
        "latency": [latencies[device].ms if device in latencies else None for device in devices],
        "texts": {
            "size_bytes": summaries.size_text(numbers["size_bytes"]),
            "bits_per_weight": summaries.bits_text(numbers["bits_per_weight"]),
            "psnr_db": summaries.db_text(math.inf if is_exact(row) else numbers["psnr_db"]),
            "cosine": summaries.number_text(numbers["cosine"]),
            "conversion_psnr_db": summaries.db_text(numbers["conversion_psnr_db"]),
            "metric": summaries.number_text(numbers["metric"]),
            "ane_share": summaries.percent_text(numbers["ane_share"]),
            "latency": [latency_text(latencies.get(device)) for device in devices],
        },
    }


# Layers


def _report(folder: Path, row: StudyRow, notes: list[str]) -> TrialReport:
    """The report of a trial, an empty one where it cannot be read."""
    if not row.report:
        return TrialReport()
    path = (folder / row.report).with_name(REPORT_FILE)
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("it lies outside the study")
        return msgspec.json.decode(path.read_bytes(), type=TrialReport)
    except (OSError, ValueError) as error:  # msgspec's are ValueErrors
        notes.append(
            f"The report of trial {row.trial} could not be read: {getattr(error, 'strerror', None) or error}."
        )
        return TrialReport()


def _layers(rows: list[StudyRow], reports: Mapping[int, TrialReport]) -> dict[str, Any]:
    """names: the weights that any trial compressed, in the order of the model; trials: number -> bits, SNR in
    dB and form of each, null: unknown."""
    weights = {row.trial: _weights(row, reports.get(row.trial, TrialReport())) for row in rows}
    names = list(dict.fromkeys(name for of_trial in weights.values() for name in of_trial))
    compressed = [
        name
        for name in names
        if any(name in of_trial and of_trial[name].snr_db is not None for of_trial in weights.values())
    ]
    forms = list(
        dict.fromkeys(weight.realised for of_trial in weights.values() for weight in of_trial.values())
    )
    trials = {
        trial: _of_layers([of_trial.get(name) for name in compressed], forms)
        for trial, of_trial in weights.items()
        if of_trial
    }
    return {"names": compressed, "forms": forms, "trials": trials}


def _of_layers(weights: list[TrialWeight | None], forms: list[str]) -> dict[str, list[float | None]]:
    """weights: a trial's; None for one that it has not."""
    return {
        "bits": [_rounded(weight.bits_per_weight) if weight else None for weight in weights],
        "snr": [_rounded(weight.snr_db) if weight else None for weight in weights],
        "form": [forms.index(weight.realised) if weight else None for weight in weights],
    }


def _weights(row: StudyRow, report: TrialReport) -> dict[str, TrialWeight]:
    """By name, those of the artifact that is the trial's."""
    artifacts = (artifact for artifact in report.artifacts if artifact.target == row.target)
    artifact = next(artifacts, TrialArtifact(row.target))
    return {weight.name: weight for weight in artifact.compression.weights}


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.5g}")


def _heat(
    study: Study, model: str, layers: dict[str, Any], tables: Iterator["Sensitivities"]
) -> dict[str, Any] | None:
    """Layers x schemes in decibels, the higher the better: the output's PSNR where one layer alone is
    compressed, if that was measured, else the SNR of each weight in the trials. None where neither is
    known."""
    if table := next(tables, None):
        names = list(dict.fromkeys(name for rows in table.errors.values() for name in rows))
        errors = [[_alone_db(rows.get(name)) for name in names] for rows in table.errors.values()]
        return {
            "model": model,
            "measured": True,
            "layers": names,
            "columns": list(table.errors),
            "values": [list(row) for row in zip(*errors)],
        }
    first: dict[str, list[float | None]] = {}
    for row in study.of_model(model):
        if found := layers["trials"].get(row.trial):
            first.setdefault(row.recipe, found["snr"])
    columns = {recipe: snr for recipe, snr in first.items() if any(value is not None for value in snr)}
    if not columns:
        return None
    values = [list(row) for row in zip(*columns.values())]
    return {
        "model": model,
        "measured": False,
        "layers": layers["names"],
        "columns": list(map(summaries.recipe_text, columns)),
        "values": values,
    }


def _tables(
    study: Study, model: str, reports: Mapping[int, TrialReport], notes: list[str]
) -> Iterator["Sensitivities"]:
    """The sensitivities in the study's folder that were measured on this model: `source` begins with the
    digest that its reports have as well."""
    from ...quantization.sensitivity_table import read_table

    digests = {reports[row.trial].source.sha256 for row in study.of_model(model) if row.trial in reports}
    for path in sorted(study.folder.glob("sensitivity*.json")):
        try:
            table = read_table(path)
        except UserError as error:
            notes.append(error.message)
            continue
        if table.errors and digests.intersection(table.source.split()[:1]):
            yield table


def _alone_db(errors: list[float] | None) -> float | None:
    """PSNR of the worst output; None where nothing was measured or nothing was lost."""
    worst = max(errors or [0.0])
    return _rounded(decibels(1.0, worst)) if worst else None


# Pictures


def _pictures(study: Study, by_metric: bool, notes: list[str]) -> dict[str, Any]:
    """model -> output -> a base picture (that of the most exact trial) and each trial's difference from it,
    as PNGs in data URLs."""
    held: dict[tuple[str, str, tuple[int, ...]], dict[int, Picture]] = {}
    for row in sorted(study.rows, key=partial(error_of, by_metric=by_metric, goal=study.goal)):
        for name, picture in _load_pictures(study.folder, row, notes).items():
            held.setdefault((row.model, name, picture.shape), {})[row.trial] = picture
    factor = factor_for([picture.shape for trials in held.values() for picture in trials.values()])
    found: dict[str, dict[str, Any]] = {}
    for (model, name, _), trials in held.items():
        small = {trial: shrink(picture, factor) for trial, picture in trials.items()}
        if min(next(iter(small.values())).shape[:2]) and name not in found.setdefault(model, {}):
            found[model][name] = _coded(small)
    return found


def _coded(pictures: dict[int, Picture]) -> dict[str, Any]:
    base = np.rint(next(iter(pictures.values())) * 255).astype(np.uint8)
    trials = {}
    for trial, picture in sorted(pictures.items()):
        pixels, scale = difference_coded(picture, base / 255)
        trials[trial] = {"url": png_url(pixels), "scale": _rounded(scale)}
    return {"height": base.shape[0], "width": base.shape[1], "base": png_url(base), "trials": trials}


def _load_pictures(folder: Path, row: StudyRow, notes: list[str]) -> dict[str, Picture]:
    if not row.pictures:
        return {}
    try:
        with np.load(folder / row.pictures, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if _is_picture(file[name])}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        notes.append(
            f"The pictures of trial {row.trial} could not be read:"
            f" {getattr(error, 'strerror', None) or error}."
        )
        return {}


def _is_picture(array: Picture) -> bool:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    return shaped and array.dtype.kind == "f" and array.size > 0 and bool(np.isfinite(array).all())
