"""How much each layer suffers under each scheme, as sensitivity.py measures it: a JSON file enters, a table
leaves, and back.

Free of torch, so that the page of a study is written without it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..models.errors import UserError

if TYPE_CHECKING:
    from ..models.capture import Captured

SCHEMA = "cidermill.sensitivity/1"


class MeasuredOn(NamedTuple):
    """Digests of what a table belongs to: the model with the shapes of its inputs, and the samples."""

    source: str
    samples: str


@dataclass(frozen=True)
class Sensitivities:
    """errors: scheme -> layer -> one figure for each of `outputs`: the mean squared error that compressing
    this layer alone causes, over all samples and relative to the square of the output's peak (so that
    10^(-PSNR/10) is its sum over the layers, if errors add up).

    source, samples: digests of what it was measured on.
    """

    source: str
    samples: str
    outputs: tuple[str, ...]
    errors: dict[str, dict[str, list[float]]]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "source": self.source,
            "samples": self.samples,
            "outputs": list(self.outputs),
            "errors": self.errors,
        }


def write_table(table: Sensitivities, path: Path) -> None:
    path.write_text(json.dumps(table.as_json(), indent=1) + "\n")


def read_table(path: Path) -> Sensitivities:
    """Raises UserError where the file is not such a table."""
    hint = "Give a sensitivity.json that an earlier run with --budget wrote."
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        outputs = tuple(str(name) for name in content["outputs"])
        errors = {
            scheme: {layer: [float(error) for error in row] for layer, row in rows.items()}
            for scheme, rows in content["errors"].items()
        }
        if any(len(row) != len(outputs) for rows in errors.values() for row in rows.values()):
            raise ValueError("its rows do not fit its outputs")
        if not all(
            0 <= error < math.inf for rows in errors.values() for row in rows.values() for error in row
        ):
            raise ValueError("an error in it is negative, infinite or NaN")
        return Sensitivities(str(content["source"]), str(content["samples"]), outputs, errors)
    except OSError as error:
        raise UserError(
            f"The table of sensitivities {path} cannot be read: {error.strerror or error}.", hint
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is no table of sensitivities ({error}).", hint) from error


def fits(table: Sensitivities, captured: Captured, measured_on: MeasuredOn) -> str:
    """ "" where the table was measured on this model and these samples, else what differs."""
    names = {layer.name for layer in captured.layers}
    if table.source != measured_on.source or table.outputs != tuple(spec.name for spec in captured.outputs):
        return "another model"
    if table.samples != measured_on.samples:
        return "other samples"
    return "" if all(set(rows) == names for rows in table.errors.values()) else "other layers"
