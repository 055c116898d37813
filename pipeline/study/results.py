"""A study's folder enters; its header and trials, the Pareto front, the best trial within constraints and the
table study.csv leave.

A trial is a row of the journal study.jsonl, which becomes a record (records.py) here.
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

import msgspec

from ...models.errors import UserError
from ..options import OPTIONS
from ..output import write_whole
from ..report.summaries import EXACT_DB, NONE, band_text
from .constraints import Constraint, describe_infeasible, total_violation
from .records import BestTrial, BestTrials, StudyHeader, StudyRow, TrialLatency

SCHEMA = "cidermill.study/1"
JOURNAL = "study.jsonl"
FIGURES = ("size_bytes", "bits_per_weight", "psnr_db", "cosine", "conversion_psnr_db", "metric", "ane_share")


@dataclass(frozen=True)
class Study:
    """rows: in the order of their numbers. goal: whether the metric of --eval is to be maximized or
    minimized."""

    folder: Path
    header: StudyHeader
    rows: tuple[StudyRow, ...]

    @property
    def goal(self) -> str:
        return self.header.goal or "maximize"

    @property
    def models(self) -> list[str]:
        return [model.name for model in self.header.models]

    def of_model(self, name: str) -> list[StudyRow]:
        return [row for row in self.rows if row.model == name]

    @property
    def front(self) -> set[int]:
        return front(self.rows, self.goal)

    @property
    def devices(self) -> list[str]:
        """Every device that a trial has a latency for, the first one first."""
        return list(dict.fromkeys(latency.device for row in self.rows for latency in row.latencies))


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
        (number, record)
        for number, line in enumerate(lines, 1)
        if line.strip() and (record := _record(line, number, path, number == len(lines))) is not None
    ]
    header = _header(records[0][1] if records else None, path)
    rows = {row.trial: row for row in (_row(record, number, path) for number, record in records[1:])}
    return Study(folder, header, tuple(rows[trial] for trial in sorted(rows)))


def _record(line: bytes, number: int, path: Path, last: bool) -> dict[str, Any] | None:
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


def _header(record: dict[str, Any] | None, path: Path) -> StudyHeader:
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
    try:
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema}")
        return msgspec.convert(record, StudyHeader)
    except ValueError as error:  # msgspec's are of that kind
        raise UserError(
            f"{path} is damaged in line 1: not a header of schema {SCHEMA}.",
            "Start the study anew in another folder.",
        ) from error


def _row(record: dict[str, Any], number: int, path: Path) -> StudyRow:
    missing = [key for key in ("trial", "model", "target", "recipe", "state") if key not in record]
    if missing or not isinstance(record["trial"], int):
        raise _damaged(path, number, f"a trial without {', '.join(missing) or 'a number'}")
    if wrong := [key for key in FIGURES if not isinstance(record.get(key), int | float | None)]:
        raise _damaged(path, number, f"{wrong[0]} is {record[wrong[0]]!r}, no number")
    try:
        return msgspec.convert(record, StudyRow)
    except msgspec.ValidationError as error:
        raise _damaged(path, number, str(error)) from error


def _damaged(path: Path, number: int, why: str) -> UserError:
    return UserError(
        f"{path} is damaged in line {number}: {why}.",
        f"Remove line {number}; the study does that trial again when it is resumed.",
    )


# What is better


def measured_by_metric(rows: Iterable[StudyRow]) -> bool:
    """Whether --eval judged these trials; else their error is the PSNR against the source."""
    return any(row.figure("metric") is not None for row in rows)


def is_exact(row: StudyRow) -> bool:
    """Whether the answers are the source's to the bit; where decibels are cut (summaries.EXACT_DB), they
    count as such."""
    return bool(row.exact) or (row.psnr_db or 0) >= EXACT_DB


def error_of(row: StudyRow, by_metric: bool, goal: str = "maximize") -> float:
    """The smaller the better: the metric, or decibels with the sign turned. -inf where the answers are exact;
    inf where nothing is known."""
    if not by_metric and is_exact(row):
        return -math.inf
    value = row.figure("metric" if by_metric else "psnr_db")
    if value is None or math.isnan(value):
        return math.inf
    return value if by_metric and goal == "minimize" else -value


def size_of(row: StudyRow) -> float:
    """In bytes; inf where it is not known."""
    size = row.figure("size_bytes")
    return math.inf if size is None else size


def first_latency_ms(row: StudyRow) -> float:
    """On the study's first device; inf where it is not known."""
    ms = row.latencies[0].ms if row.latencies else None
    return math.inf if ms is None else ms


def front(rows: Iterable[StudyRow], goal: str = "maximize") -> set[int]:
    """Numbers of the trials that no other trial of their model and target beats: none is at least as good in
    size, error and latency and better in one of them. Trials that failed, whose verdict failed, or whose
    error is not known are never among them. Latencies are compared in two digits: an estimate, whose band is
    far wider, would otherwise put trials on the front that are better by nothing else than its rounding.
    """
    groups: dict[tuple[str, str], list[StudyRow]] = {}
    for row in rows:
        if row.passed:
            groups.setdefault((row.model, row.target), []).append(row)
    return {trial for group in groups.values() for trial in _front_of_group(group, goal)}


def _front_of_group(rows: list[StudyRow], goal: str) -> Iterator[int]:
    by_metric = measured_by_metric(rows)
    points = {
        row.trial: (size_of(row), error_of(row, by_metric, goal), float(f"{first_latency_ms(row):.2g}"))
        for row in rows
    }
    for trial, point in points.items():
        if point[1] < math.inf and not any(_beats(other, point) for other in points.values()):
            yield trial


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other))


def best(
    rows: Iterable[StudyRow], constraints: Sequence[Constraint], goal: str = "maximize"
) -> StudyRow | None:
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
        if row.passed and total_violation(constraints, row) == 0 and error_of(row, by_metric, goal) < math.inf
    ]
    asked = {constraint.quantity for constraint in constraints}
    smallest = bool(asked & {"psnr", "cosine", "metric"}) and not asked & {"size", "bits", "latency"}

    def rank(row: StudyRow) -> tuple[float, ...]:
        error, size = error_of(row, by_metric, goal), size_of(row)
        return (*((size, error) if smallest else (error, size)), first_latency_ms(row), row.trial)

    return min(feasible, key=rank, default=None)


def best_of(study: Study, constraints: Sequence[Constraint]) -> BestTrials:
    """For each model its best trial."""
    trials = tuple(_best_of_model(study, name, constraints) for name in study.models)
    return BestTrials(
        str(study.folder),
        tuple(constraint.text for constraint in constraints),
        trials,
        "pass" if all(best_trial.trial for best_trial in trials) else "fail",
    )


def _best_of_model(study: Study, model: str, constraints: Sequence[Constraint]) -> BestTrial:
    rows = study.of_model(model)
    row = best(rows, constraints, study.goal)
    if row is None:
        why = (
            describe_infeasible(rows, constraints)
            or "The error of the trials that meet the constraints is not known."
        )
        return BestTrial(model, infeasible=why)
    return BestTrial(model, row, shlex.join(convert_command(study, row)))


def convert_command(study: Study, row: StudyRow) -> list[str]:
    """The words that make the trial's artifact again, `cidermill convert` first: `convert` alone is
    ImageMagick on many machines."""
    header = study.header
    model = next(model for model in header.models if model.name == row.model)
    given: dict[str, Any] = {"device": header.devices, **(header.options or {})}
    defaults = {option.name: option.default for option in OPTIONS["convert"]}
    command = ["cidermill", "convert", model.path, "--target", row.target, "--quant", row.recipe]
    for name, content in given.items():
        for value in content if isinstance(content, list | tuple) else [content]:
            if value is True:
                command.append(f"--{name}")
            elif value and value != defaults.get(name):  # defaults go without saying
                command += [f"--{name}", str(value)]
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
    names = ["trial", "model", "target", "recipe", "state", "verdict", "front"]
    writer.writerow([*names, *FIGURES, *latencies, "sha256", "report", "reason"])
    on_front = study.front
    for row in study.rows:
        figures = ["inf" if key == "psnr_db" and is_exact(row) else row.figure(key) for key in FIGURES]
        named = [row.trial, row.model, row.target, row.recipe, row.state, row.verdict]
        writer.writerow(
            [
                *(*named, int(row.trial in on_front)),
                *figures,
                *_latency_cells(row, study.devices),
                *(row.sha256 or None, row.report or None, first_line(row.reason)),
            ]
        )
    return stream.getvalue()


def _latency_cells(row: StudyRow, devices: Sequence[str]) -> Iterator[float | None]:
    latencies = {latency.device: latency for latency in row.latencies}
    for device in devices:
        latency = latencies.get(device)
        yield from (None,) * 3 if latency is None else (latency.ms, latency.low_ms, latency.high_ms)


def first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


def latency_text(latency: TrialLatency | None) -> str:
    """A device's prediction with its band."""
    return NONE if latency is None else band_text(latency.ms, latency.low_ms, latency.high_ms)
