"""A study's folder enters; its header and trials, the Pareto front, the best trial within constraints and the
table study.csv leave.

A trial is a row of the journal study.jsonl as it was written there: a plain dict, of which a failed trial has
only some keys.
"""

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..options import OPTIONS
from ..output import write_whole
from ..report.summaries import EXACT_DB, band_text
from .constraints import Constraint, describe_infeasible, total_violation, usable

SCHEMA = "cidermill.study/1"
JOURNAL = "study.jsonl"
FIGURES = ("size_bytes", "bits_per_weight", "psnr_db", "cosine", "conversion_psnr_db", "metric", "ane_share")
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """rows: in the order of their numbers. goal: whether the metric of --eval is to be maximized or
    minimized."""

    folder: Path
    header: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def goal(self) -> str:
        return self.header.get("goal") or "maximize"

    @property
    def models(self) -> list[str]:
        return [model["name"] for model in self.header["models"]]

    def of_model(self, name: str) -> list[Row]:
        return [row for row in self.rows if row["model"] == name]

    @property
    def front(self) -> set[int]:
        return front(self.rows, self.goal)

    @property
    def devices(self) -> list[str]:
        """Every device that a trial has a latency for, the first one first."""
        return list(dict.fromkeys(one["device"] for row in self.rows for one in row.get("latency") or []))


def load_study(folder: Path) -> Study:
    """Read OUT/study.jsonl. A last line that a kill cut off is left out; of two rows of one trial the later
    counts.

    Raises UserError: no study there, written by a newer cidermill, or damaged before its end (the message
    names the line).
    """
    path = folder / JOURNAL
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        why = (
            f"has no {JOURNAL}" if folder.is_dir() else "is not there" if not folder.exists() else "is a file"
        )
        raise UserError(
            f"{folder} is no study: it {why}.",
            "Make one with `cidermill study MODEL --out DIR`, and give that DIR.",
        ) from error
    except OSError as error:
        raise UserError(
            f"The study {path} cannot be read: {error.strerror}.",
            "Give the folder of a study that you may read.",
        ) from error
    records = [
        (number, _record(line, number, path, number == len(lines)))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    records = [(number, record) for number, record in records if record is not None]
    header = _header(records[0][1] if records else None, path)
    rows = {row["trial"]: row for row in (_row(record, number, path) for number, record in records[1:])}
    return Study(folder, header, tuple(rows[trial] for trial in sorted(rows)))


def _record(line: bytes, number: int, path: Path, last: bool) -> dict | None:
    """One line's object; None for a last one without a newline: it was cut off, and the study, when it is
    resumed, does that trial again."""
    if last:
        return None
    try:
        record = json.loads(line, parse_constant=lambda name: None)  # NaN and infinities are no figures
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number, str(error)) from error
    return record


def _header(record: dict | None, path: Path) -> dict:
    if record is None:
        raise UserError(
            f"{path} holds no study yet: its first line is not complete.",
            "Start the study again with the same command; it resumes.",
        )
    schema = str(record.get("schema"))
    newer = re.fullmatch(r"cidermill\.study/(\d+)", schema)
    if newer and schema != SCHEMA:
        raise UserError(
            f"{path} was written by a newer cidermill: it has schema {schema}, this one reads {SCHEMA}.",
            "Update cidermill.",
        )
    models = record.get("models")
    if (
        schema != SCHEMA
        or not isinstance(models, list)
        or not all(isinstance(model, dict) and "name" in model for model in models)
    ):
        raise UserError(
            f"{path} is damaged in line 1: not a header of schema {SCHEMA}.",
            "Start the study anew in another folder.",
        )
    return record


def _row(record: dict, number: int, path: Path) -> Row:
    missing = [key for key in ("trial", "model", "target", "recipe", "state") if key not in record]
    if missing or not isinstance(record["trial"], int):
        raise _damaged(path, number, f"a trial without {', '.join(missing) or 'a number'}")
    if wrong := [key for key in FIGURES if not isinstance(record.get(key), int | float | None)]:
        raise _damaged(path, number, f"{wrong[0]} is {record[wrong[0]]!r}, no number")
    return record


def _damaged(path: Path, number: int, why: str) -> UserError:
    return UserError(
        f"{path} is damaged in line {number}: {why}.",
        f"Remove line {number}; the study does that trial again when it is resumed.",
    )


# What is better


def measured_by_metric(rows: Iterable[Row]) -> bool:
    """Whether --eval judged these trials; else their error is the PSNR against the source."""
    return any(row.get("metric") is not None for row in rows)


def is_exact(row: Row) -> bool:
    """Whether the answers are the source's to the bit; where decibels are cut (summaries.EXACT_DB), they
    count as such."""
    return bool(row.get("exact")) or (row.get("psnr_db") or 0) >= EXACT_DB


def error_of(row: Row, by_metric: bool, goal: str = "maximize") -> float:
    """The smaller the better: the metric, or decibels with the sign turned. -inf where the answers are exact;
    inf where nothing is known."""
    if not by_metric and is_exact(row):
        return -math.inf
    value = row.get("metric" if by_metric else "psnr_db")
    if value is None or math.isnan(value):
        return math.inf
    return value if by_metric and goal == "minimize" else -value


def first_latency_ms(row: Row) -> float:
    """On the study's first device; inf where it is not known."""
    ms = next((one.get("ms") for one in row.get("latency") or []), None)
    return math.inf if ms is None else ms


def front(rows: Iterable[Row], goal: str = "maximize") -> set[int]:
    """Numbers of the trials that no other trial of their model and target beats: none is at least as good in
    size, error and latency and better in one of them. Trials that failed, whose verdict failed, or whose
    error is not known are never among them. Latencies are compared in two digits: an estimate, whose band is
    far wider, would otherwise put trials on the front that are better by nothing else than its rounding.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in filter(usable, rows):
        groups.setdefault((row["model"], row["target"]), []).append(row)
    return {trial for group in groups.values() for trial in _front_of_group(group, goal)}


def _front_of_group(rows: list[Row], goal: str) -> Iterator[int]:
    by_metric = measured_by_metric(rows)
    points = {
        row["trial"]: (
            row["size_bytes"],
            error_of(row, by_metric, goal),
            float(f"{first_latency_ms(row):.2g}"),
        )
        for row in rows
    }
    for trial, point in points.items():
        if point[1] < math.inf and not any(_beats(other, point) for other in points.values()):
            yield trial


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other))


def best(rows: Iterable[Row], constraints: Sequence[Constraint], goal: str = "maximize") -> Row | None:
    """The trial with the smallest error among those that passed and meet every constraint; of equals the
    smallest, then the fastest.

    Where constraints only say how good the answers must be, so that they would all choose the largest, it is
    the smallest that is good enough.
    rows: of one model. None where there is no such trial.
    """
    rows = list(rows)
    by_metric = measured_by_metric(rows)
    feasible = [
        row
        for row in rows
        if usable(row)
        and total_violation(constraints, row) == 0
        and error_of(row, by_metric, goal) < math.inf
    ]
    asked = {constraint.quantity for constraint in constraints}
    smallest = bool(asked & {"psnr", "cosine", "metric"}) and not asked & {"size", "bits", "latency"}

    def rank(row: Row) -> tuple:
        error, size = error_of(row, by_metric, goal), row["size_bytes"]
        return (*((size, error) if smallest else (error, size)), first_latency_ms(row), row["trial"])

    return min(feasible, key=rank, default=None)


def best_of(study: Study, constraints: Sequence[Constraint]) -> dict:
    """For each model its best trial and the `convert` command that makes it, or why there is none. verdict:
    "fail" where one has none."""
    found = [_best_of_model(study, model["name"], constraints) for model in study.header["models"]]
    verdict = "pass" if all("trial" in one for one in found) else "fail"
    return {
        "study": str(study.folder),
        "constraints": [constraint.text for constraint in constraints],
        "models": found,
        "verdict": verdict,
    }


def _best_of_model(study: Study, model: str, constraints: Sequence[Constraint]) -> dict:
    rows = study.of_model(model)
    row = best(rows, constraints, study.goal)
    if row is None:
        why = (
            describe_infeasible(rows, constraints)
            or "The error of the trials that meet the constraints is not known."
        )
        return {"model": model, "infeasible": why}
    return {"model": model, "trial": row, "command": shlex.join(convert_command(study, row))}


def convert_command(study: Study, row: Row) -> list[str]:
    """The arguments that make the trial's artifact again, `convert` first."""
    model = next(model for model in study.header["models"] if model["name"] == row["model"])
    options = study.header.get("options") or {}
    defaults = {option.name: option.default for option in OPTIONS["convert"]}
    command = ["convert", str(model["path"]), "--target", row["target"], "--quant", row["recipe"]]
    for name, value in {"device": study.header.get("devices"), **options}.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                command.append(f"--{name}")
            elif one and one != defaults.get(name):  # defaults go without saying
                command += [f"--{name}", str(one)]
    return command


# The table


def write_csv(folder: Path) -> Path:
    """study.csv: a row for each trial, in the order of their numbers. Equal studies give equal bytes: times
    and memory are left out."""
    path = folder / "study.csv"
    content = csv_text(load_study(folder)).encode("utf-8", "backslashreplace")
    write_whole(path, lambda stream: stream.write(content))
    return path


def csv_text(study: Study) -> str:
    """An exact answer's PSNR is `inf`, a figure that is not known an empty field; three columns for each
    device's latency."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    latencies = [f"{key} {device}" for device in study.devices for key in ("ms", "low_ms", "high_ms")]
    writer.writerow(
        [
            "trial",
            "model",
            "target",
            "recipe",
            "state",
            "verdict",
            "front",
            *FIGURES,
            *latencies,
            "sha256",
            "report",
            "reason",
        ]
    )
    on_front = study.front
    for row in study.rows:
        figures = ["inf" if key == "psnr_db" and is_exact(row) else row.get(key) for key in FIGURES]
        devices = {one["device"]: one for one in row.get("latency") or []}
        bands = [
            devices.get(device, {}).get(key)
            for device in study.devices
            for key in ("ms", "low_ms", "high_ms")
        ]
        first = [
            row["trial"],
            row["model"],
            row["target"],
            row["recipe"],
            row["state"],
            row.get("verdict"),
            int(row["trial"] in on_front),
        ]
        writer.writerow(
            [*first, *figures, *bands, row.get("sha256"), row.get("report"), first_line(row.get("reason"))]
        )
    return stream.getvalue()


def first_line(text: Any) -> str:
    return (str(text or "").strip().splitlines() or [""])[0]


def latency_text(latency: Row) -> str:
    """A device's entry of a row, with its band; {} where there is none."""
    return band_text(*(latency.get(key) for key in ("ms", "low_ms", "high_ms")))
