"""Constraints on a study's trials: "size<=12MB, psnr>=30" enters; by how much a trial breaks each, and why
none can keep all, leaves.

constraints := constraint ("," constraint)*      constraint := quantity ["[" device "]"] ("<=" | ">=") number
[unit]
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import combinations
from typing import TYPE_CHECKING

from ...models.errors import UserError
from ..quantities import BYTES, MILLISECONDS
from ..report import summaries
from .records import StudyRow

if TYPE_CHECKING:  # which reads its tables
    from ...validation.estimate.devices import Device

HINT = (
    'Write for example "size<=12MB", "psnr>=30", "ane_share>=0.95", "latency[iPhone 15 Pro]<=2ms",'
    ' "metric>=0.9"; several joined by commas.'
)


@dataclass(frozen=True)
class Quantity:
    """A figure of a trial: the row's field, the relations that make sense, its units (in lower case -> what
    they count; "": none is needed)."""

    key: str
    relations: tuple[str, ...]
    units: dict[str, float]


QUANTITIES = {
    "size": Quantity("size_bytes", ("<=",), BYTES),
    "bits": Quantity("bits_per_weight", ("<=",), {"": 1, "bits": 1, "bpw": 1}),
    "psnr": Quantity("psnr_db", (">=",), {"": 1, "db": 1}),
    "cosine": Quantity("cosine", (">=",), {"": 1}),
    "metric": Quantity("metric", ("<=", ">="), {"": 1, "%": 0.01}),
    "ane_share": Quantity("ane_share", (">=",), {"": 1, "%": 0.01}),
    "latency": Quantity("latency", ("<=",), MILLISECONDS),
}


@dataclass(frozen=True)
class Constraint:
    """bound: in bytes, bits, decibels, milliseconds, or the plain number (shares in 0..1). device: of a
    latency, "" for the study's first."""

    quantity: str
    device: str
    relation: str
    bound: float
    text: str


def parse_constraints(texts: str | Iterable[str], devices: Sequence[str] = ()) -> tuple[Constraint, ...]:
    """Constraints joined by commas, or given one by one; each is kept once. devices: what latencies are known
    for, where that is known already.

    Raises UserError: not a constraint, unknown quantity, unit or device, a relation that would ask for the
    worse, a bound out of reach.
    """
    given = [texts] if isinstance(texts, str) else list(texts)
    parts = [part.strip() for text in given for part in re.split(r",(?![^\[]*\])", text)]
    if not any(parts):
        raise UserError("No constraint was given.", HINT)
    return tuple(dict.fromkeys(_parse(part, devices) for part in parts if part))


def _parse(text: str, devices: Sequence[str]) -> Constraint:
    found = re.fullmatch(
        r"([^\[\]<>=]+?)\s*(?:\[([^\[\]]*)\])?\s*([<>=≤≥]+)\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*([^\d\s]*)",
        text,
        re.IGNORECASE,
    )
    if not found:
        raise UserError(f"{text!r} is no constraint: it takes a quantity, <= or >=, and a number.", HINT)
    name, device, relation, number, unit = found.groups()
    name, relation = name.strip().lower(), {"≤": "<=", "≥": ">="}.get(relation, relation)
    quantity = _quantity(name, text)
    _check_relation(quantity, name, relation, text)
    bound = _bound(quantity, number, unit.lower(), text)
    _check_bound(name, bound, text)
    return Constraint(name, _device(name, device, devices, text), relation, bound, text)


def _quantity(name: str, text: str) -> Quantity:
    if name in QUANTITIES:
        return QUANTITIES[name]
    near = difflib.get_close_matches(name, QUANTITIES, n=1, cutoff=0.4)
    suggestion = f"; did you mean {near[0]}?" if near else "."
    raise UserError(
        f"{text!r}: unknown quantity {name!r}; allowed are {', '.join(QUANTITIES)}{suggestion}", HINT
    )


def _check_relation(quantity: Quantity, name: str, relation: str, text: str) -> None:
    if relation not in ("<=", ">="):
        raise UserError(
            f"{text!r}: {relation!r} is no relation; allowed are {' and '.join(quantity.relations)} for"
            f" {name}.",
            HINT,
        )
    if relation not in quantity.relations:
        better = "the smaller the better" if quantity.relations == ("<=",) else "the larger the better"
        raise UserError(
            f"{text!r} asks for the worse: of {name}, {better}.",
            f"Write {text.replace(relation, quantity.relations[0])!r}.",
        )


def _bound(quantity: Quantity, number: str, unit: str, text: str) -> float:
    if unit not in quantity.units:
        what = f"unknown unit {unit!r}" if unit else "a unit is missing"
        allowed = ", ".join(_spelt(name) for name in quantity.units if name)
        raise UserError(
            f"{text!r}: {what}; allowed {'are ' + allowed if allowed else 'is a plain number'}.", HINT
        )
    try:
        # 95 % is 0.95, not 0.9500000000000001
        return float(Decimal(number) * Decimal(str(quantity.units[unit])))
    except InvalidOperation as error:
        raise UserError(f"{text!r}: {number!r} is no number.", HINT) from error


def _spelt(unit: str) -> str:
    """Units as people write them: "mb" -> "MB", "kib" -> "KiB"."""
    return {"b": "B", "kb": "kB", "db": "dB"}.get(
        unit, unit[0].upper() + unit[1:-1] + "B" if unit in BYTES else unit
    )


def _check_bound(name: str, bound: float, text: str) -> None:
    if name in ("cosine", "ane_share") and not 0 <= bound <= 1:
        raise UserError(
            f"{text!r}: {name} lies between 0 and 1, and {bound:g} does not.", f"Write {name}>=0.95 for 95 %."
        )
    if name in ("size", "bits", "latency") and bound <= 0:
        raise UserError(f"{text!r}: nothing can be that small; the bound must be above 0.", HINT)
    if not math.isfinite(bound):
        raise UserError(f"{text!r}: the bound must be finite.", HINT)


def _device(name: str, device: str | None, devices: Sequence[str], text: str) -> str:
    """The device's or chip's full name. Raises UserError where it belongs to no latency, or the study does
    not know it."""
    if device is None:
        return ""
    if name != "latency":
        raise UserError(f"{text!r}: {name} is the same on every device.", f"Leave [{device}] out.")
    if not device.strip():
        raise UserError(
            f"{text!r}: the brackets name no device.",
            'Name one, as in "latency[iPhone 15 Pro]<=2ms", or leave them out for the first.',
        )
    from ...validation.estimate.devices import find_device

    found = find_device(device)
    if devices and not any(_same(one, found) for one in map(find_device, devices)):
        known = ", ".join(devices)
        raise UserError(
            f"{text!r}: the study has no latency for {found.name}; it has {known}.",
            f'Study it with --device "{found.name}".',
        )
    return found.name


def _same(device: "Device", wanted: "Device") -> bool:
    return device.name == wanted.name or wanted.name == device.chip


def violation(constraint: Constraint, row: StudyRow) -> float:
    """By how much of the bound a trial breaks the constraint: 0.0 where it is met, 0.25 for 15 MB of 12; inf
    where the figure is not known.

    For a bound of 0 it is the plain difference.
    """
    value = value_of(constraint, row)
    if value is None or math.isnan(value):
        return math.inf
    over = value - constraint.bound if constraint.relation == "<=" else constraint.bound - value
    return max(0.0, over / (abs(constraint.bound) or 1.0))


def value_of(constraint: Constraint, row: StudyRow) -> float | None:
    """The trial's figure, in the bound's unit; None where it is not known. An exact answer's PSNR is
    infinite."""
    if constraint.quantity == "latency":
        matching = [
            latency
            for latency in row.latencies
            if not constraint.device or constraint.device in (latency.device, latency.chip)
        ]
        return matching[0].ms if matching else None
    if constraint.quantity == "psnr" and row.exact:
        return math.inf
    return row.figure(QUANTITIES[constraint.quantity].key)


def total_violation(constraints: Iterable[Constraint], row: StudyRow) -> float:
    return sum(violation(constraint, row) for constraint in constraints)


def describe_infeasible(rows: Iterable[StudyRow], constraints: Sequence[Constraint]) -> str:
    """Which constraints no trial meets and how near the nearest comes, in one sentence for each; "" where a
    trial meets them all.

    Only trials that may be chosen count. Where each can be met alone, the fewest that exclude each other are
    named.
    """
    rows = list(rows)
    candidates = [row for row in rows if row.passed]
    if not candidates:
        failed = sum(row.state == "failed" for row in rows)
        told = f"No trial passed: {failed} could not be finished, {len(rows) - failed} had a failing verdict."
        return told if rows else "There are no trials yet."
    if any(total_violation(constraints, row) == 0 for row in candidates):
        return ""
    alone = [
        constraint for constraint in constraints if all(violation(constraint, row) for row in candidates)
    ]
    if alone:
        return "\n".join(_describe_alone(constraint, candidates) for constraint in alone)
    return _describe_together(constraints, candidates)


def _describe_alone(constraint: Constraint, candidates: list[StudyRow]) -> str:
    nearest = min(candidates, key=lambda row: violation(constraint, row))
    if math.isinf(violation(constraint, nearest)):
        return f"{constraint.text} cannot be met: {_unknown(constraint)} in every trial that passed."
    return (
        f"{constraint.text} cannot be met: the nearest is {_miss(constraint, nearest)}, in trial"
        f" {_name(nearest)}."
    )


def _describe_together(constraints: Sequence[Constraint], candidates: list[StudyRow]) -> str:
    """Each can be met alone, so at least two exclude each other: the smallest such set, and the trial that
    misses it least."""
    sets = (chosen for count in range(2, len(constraints) + 1) for chosen in combinations(constraints, count))
    chosen = next(chosen for chosen in sets if all(total_violation(chosen, row) for row in candidates))
    nearest = min(candidates, key=lambda row: total_violation(chosen, row))
    missed = [constraint for constraint in chosen if violation(constraint, nearest)]
    met = [constraint.text for constraint in chosen if constraint not in missed]
    misses = " and ".join(
        f"has {_miss(constraint, nearest)}, where {constraint.text} is asked" for constraint in missed
    )
    names = f"{', '.join(constraint.text for constraint in chosen[:-1])} and {chosen[-1].text}"
    return (
        f"{names} cannot be met together: trial {_name(nearest)} comes nearest; it"
        f" {'meets ' + ', '.join(met) + ' and ' if met else ''}{misses}."
    )


def _name(row: StudyRow) -> str:
    return f"{row.trial} ({row.recipe}, {row.target})"


def _miss(constraint: Constraint, row: StudyRow) -> str:
    """ "15.0 MB, 3.00 MB (25 %) too much"; decibels, which are logarithms, without a share."""
    value, share = value_of(constraint, row), violation(constraint, row)
    if value is None:
        return f"no figure ({_unknown(constraint)})"
    by = value_text(constraint.quantity, abs(value - constraint.bound))
    percent = f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"
    relative = f" ({percent} %)" if constraint.bound and constraint.quantity != "psnr" else ""
    return (
        f"{value_text(constraint.quantity, value)}, {by}{relative} too"
        f" {'much' if constraint.relation == '<=' else 'little'}"
    )


def value_text(quantity: str, value: float | None) -> str:
    """A figure as people read it, with its unit."""
    if value is None:
        return summaries.NONE
    texts: dict[str, Callable[[float], str]] = {
        "size": summaries.size_text,
        "psnr": summaries.db_text,
        "latency": summaries.ms_text,
        "bits": lambda bits: f"{bits:.2f} bits per weight",
    }
    return texts.get(quantity, summaries.number_text)(value)


def _unknown(constraint: Constraint) -> str:
    if constraint.quantity == "metric":
        return "there is no metric (--eval gives one)"
    if constraint.quantity == "latency":
        return (
            f"there is no latency{' for ' + constraint.device if constraint.device else ''} (--device gives"
            " one)"
        )
    return f"{constraint.quantity} is not known"
