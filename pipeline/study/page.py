"""A study's folder enters, study.html leaves: one file that loads nothing, with the scatter, the layers, the
trials and any two side by side.

What the page's script shows is put together here (`page_data`); study.js.j2 draws it and computes only
differences.
"""

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
import numpy as np

from ...models.decibels import decibels
from ...models.errors import UserError
from ..output import REPORT_FILE, write_whole
from ..report import summaries
from ..report.json_files import to_builtins
from ..report.write import page_templates
from .constraints import parse_constraints
from .page_records import (
    Counts,
    Heat,
    Layers,
    PageData,
    PagePicture,
    PageTrial,
    PictureDifference,
    ReportedWeight,
    TrialLayers,
    TrialReport,
    TrialTexts,
)
from .pictures import difference_coded, factor_for, png_url, shrink
from .records import BestTrial, StudyRow
from .results import (
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
    groups = list(dict.fromkeys((trial.model, trial.target) for trial in data.trials))
    by_size = sorted(
        data.trials,
        key=lambda trial: (
            groups.index((trial.model, trial.target)),
            trial.size_bytes or math.inf,
            trial.trial,
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


def script_json(data: PageData) -> str:
    """JSON that is safe inside <script>: no "<", "&" or line separators, so that no name can end the
    element."""
    text = json.dumps(to_builtins(data), separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _counts(study: Study) -> Counts:
    return Counts(
        trials=len(study.rows),
        passed=sum(row.passed for row in study.rows),
        failing=sum(row.verdict == "fail" and row.state == "done" for row in study.rows),
        failed=sum(row.state == "failed" for row in study.rows),
        front=len(study.front),
    )


def _best(study: Study) -> tuple[BestTrial, ...]:
    """For each model its best trial within the constraints that the study was made with; without any,
    nothing."""
    if not study.header.constraints:
        return ()
    return best_of(study, parse_constraints(study.header.constraints)).models


def page_data(study: Study) -> tuple[PageData, list[str]]:
    """-> (what the script draws, notes on what could not be read)."""
    notes: list[str] = []
    reports = {row.trial: _report(study.folder, row, notes) for row in study.rows if row.state == "done"}
    by_metric = measured_by_metric(study.rows)
    on_front = study.front
    layers = {model: _layers(study.of_model(model), reports) for model in study.models}
    heats = (
        _heat(study, model, layers[model], _tables(study, model, reports, notes)) for model in study.models
    )
    data = PageData(
        trials=tuple(_trial(row, row.trial in on_front, study.devices) for row in study.rows),
        models=tuple(study.models),
        targets=tuple(dict.fromkeys(row.target for row in study.rows)),
        devices=tuple(study.devices),
        by_metric=by_metric,
        goal=study.goal,
        layers=layers,
        heat=tuple(heat for heat in heats if heat is not None),
        pictures=_pictures(study, by_metric, notes),
    )
    return data, notes


def _trial(row: StudyRow, on_front: bool, devices: Sequence[str]) -> PageTrial:
    latencies = {latency.device: latency for latency in row.latencies}
    size_bytes, psnr_db, conversion_psnr_db = map(row.figure, ("size_bytes", "psnr_db", "conversion_psnr_db"))
    bits_per_weight, cosine, metric, ane_share = map(
        row.figure, ("bits_per_weight", "cosine", "metric", "ane_share")
    )
    texts = TrialTexts(
        summaries.size_text(size_bytes),
        summaries.bits_text(bits_per_weight),
        summaries.db_text(math.inf if is_exact(row) else psnr_db),
        summaries.number_text(cosine),
        summaries.db_text(conversion_psnr_db),
        summaries.number_text(metric),
        summaries.percent_text(ane_share),
        tuple(latency_text(latencies.get(device)) for device in devices),
    )
    return PageTrial(
        trial=row.trial,
        model=row.model,
        target=row.target,
        recipe=row.recipe,
        state=row.state,
        verdict=row.verdict,
        size_bytes=size_bytes,
        bits_per_weight=bits_per_weight,
        psnr_db=psnr_db,
        cosine=cosine,
        conversion_psnr_db=conversion_psnr_db,
        metric=metric,
        ane_share=ane_share,
        short=summaries.recipe_text(row.recipe),
        exact=is_exact(row),
        front=on_front,
        reason=first_line(row.reason),
        report=quote(row.report) if row.report else None,  # a ":" is coded as well: nothing but a path
        latency=tuple(latencies[device].ms if device in latencies else None for device in devices),
        texts=texts,
    )


# Layers


def _report(folder: Path, row: StudyRow, notes: list[str]) -> TrialReport:
    if not row.report:
        return TrialReport()
    path = (folder / row.report).with_name(REPORT_FILE)
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("it lies outside the study")
        return msgspec.json.decode(path.read_bytes(), type=TrialReport)
    except (OSError, ValueError) as error:  # msgspec's are of that kind
        notes.append(
            f"The report of trial {row.trial} could not be read: {getattr(error, 'strerror', None) or error}."
        )
        return TrialReport()


def _layers(rows: Sequence[StudyRow], reports: Mapping[int, TrialReport]) -> Layers:
    weights = {row.trial: reports.get(row.trial, TrialReport()).weights_of(row.target) for row in rows}
    all_weights = [weight for of_trial in weights.values() for weight in of_trial.values()]
    compressed = {weight.name for weight in all_weights if weight.snr_db is not None}
    names = tuple(name for name in dict.fromkeys(weight.name for weight in all_weights) if name in compressed)
    forms = tuple(dict.fromkeys(weight.realised for weight in all_weights))
    trials = {
        trial: _trial_layers([of_trial.get(name) for name in names], forms)
        for trial, of_trial in weights.items()
        if of_trial
    }
    return Layers(names, forms, trials)


def _trial_layers(weights: Sequence[ReportedWeight | None], forms: Sequence[str]) -> TrialLayers:
    """weights: None where the trial has none of the name."""
    return TrialLayers(
        bits=tuple(_rounded(weight.bits_per_weight) if weight else None for weight in weights),
        snr=tuple(_rounded(weight.snr_db) if weight else None for weight in weights),
        form=tuple(forms.index(weight.realised) if weight else None for weight in weights),
    )


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.5g}")


def _heat(study: Study, model: str, layers: Layers, tables: "Iterator[Sensitivities]") -> Heat | None:
    """By the first table, if there is one. None where nothing is known."""
    if table := next(tables, None):
        names = tuple(dict.fromkeys(name for errors in table.errors.values() for name in errors))
        alone = [[_alone_db(errors.get(name)) for name in names] for errors in table.errors.values()]
        return Heat(model, True, names, tuple(table.errors), tuple(zip(*alone)))
    first: dict[str, tuple[float | None, ...]] = {}
    for row in study.of_model(model):
        if of_trial := layers.trials.get(row.trial):
            first.setdefault(row.recipe, of_trial.snr)
    columns = {recipe: snr for recipe, snr in first.items() if any(value is not None for value in snr)}
    if not columns:
        return None
    shown = tuple(map(summaries.recipe_text, columns))
    return Heat(model, False, layers.names, shown, tuple(zip(*columns.values())))


def _tables(
    study: Study, model: str, reports: Mapping[int, TrialReport], notes: list[str]
) -> "Iterator[Sensitivities]":
    """The sensitivities in the study's folder that were measured on this model: `source` begins with the
    digest that its reports have as well."""
    from ...quantization.sensitivity_table import read_table

    digests = {reports[row.trial].source.sha256 for row in study.of_model(model) if row.trial in reports} - {
        ""
    }
    for path in sorted(study.folder.glob("sensitivity*.json")):
        try:
            table = read_table(path)
        except UserError as error:
            notes.append(error.message)
            continue
        if table.errors and digests & set(table.source.split()[:1]):
            yield table


def _alone_db(errors: list[float] | None) -> float | None:
    """PSNR of the worst output; None where nothing was measured or nothing was lost."""
    worst = max(errors or [0.0])
    return _rounded(decibels(1.0, worst)) if worst else None


# Pictures


def _pictures(study: Study, by_metric: bool, notes: list[str]) -> dict[str, dict[str, PagePicture]]:
    """model -> output -> picture. The base is that of the most exact trial."""
    groups: dict[tuple[str, str, tuple[int, ...]], dict[int, np.ndarray]] = {}
    for row in sorted(study.rows, key=partial(error_of, by_metric=by_metric, goal=study.goal)):
        for name, picture in _load_pictures(study.folder, row, notes).items():
            groups.setdefault((row.model, name, picture.shape), {})[row.trial] = picture
    factor = factor_for([picture.shape for trials in groups.values() for picture in trials.values()])
    pictures: dict[str, dict[str, PagePicture]] = {}
    for (model, name, _), trials in groups.items():
        small = {trial: shrink(picture, factor) for trial, picture in trials.items()}
        if min(next(iter(small.values())).shape[:2]) and name not in pictures.setdefault(model, {}):
            pictures[model][name] = _coded(small)
    return pictures


def _coded(pictures: Mapping[int, np.ndarray]) -> PagePicture:
    """pictures: of trials, the base's first."""
    base = np.rint(next(iter(pictures.values())) * 255).astype(np.uint8)
    trials = {}
    for trial, picture in sorted(pictures.items()):
        pixels, scale = difference_coded(picture, base / 255)
        trials[trial] = PictureDifference(png_url(pixels), _rounded(scale))
    return PagePicture(base.shape[0], base.shape[1], png_url(base), trials)


def _load_pictures(folder: Path, row: StudyRow, notes: list[str]) -> dict[str, np.ndarray]:
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


def _is_picture(array: np.ndarray) -> bool:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    return shaped and array.dtype.kind == "f" and array.size > 0 and bool(np.isfinite(array).all())
