"""What every stage starts from: the trained network, its inputs and the identity of the file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from .errors import UserError

if TYPE_CHECKING:  # the command line reads this file for --help, which must not wait for numpy
    import numpy as np
    import torch
    from torch.export import ExportedProgram

    from .parts import Part


NORMAL = "normal"  # what the kind of the first synthetic samples is called


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor at the border of a model. `dtype` is numpy's name for it: "float32", "int32", "bool"."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Limit(NamedTuple):
    """What the values of an integer input may be: from `low`, below `high`, of all elements or, as arrays of
    the input's shape, of each. ascending: along the last axis none is below the one before."""

    low: int | np.ndarray
    high: int | np.ndarray
    ascending: bool = False


class OpenSize(NamedTuple):
    """A dimension that an exported program leaves open: of input number `place`, from `low` to `high` (None:
    without an end). symbol: dimensions of one symbol have one size; plain: whether it is the symbol itself,
    and not computed of it; step: of which it must be a multiple, as where it is 4*symbol."""

    place: int
    axis: int
    symbol: str
    low: int
    high: int | None
    plain: bool = True
    step: int = 1


@dataclass(frozen=True)
class Source:
    """A model as the user gave it, ready to be captured.

    `module` is in eval mode and float32; `module(**tensors)` takes tensors named and ordered as in `inputs`,
    with int64 where `inputs` says int32, and returns what the model returns (a Hugging Face model: {name:
    tensor}). Its parameters keep the names that the model's author gave them. `program` is set when the file
    already held an exported program of fixed shapes; its user inputs are then tensors only, in the order of
    `inputs`.
    `format` is one of "exported-program", "hugging-face", "module", "state-dict", "torchscript".
    """

    path: Path
    format: str
    sha256: str
    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    program: ExportedProgram | None = None
    output_names: tuple[str, ...] = ()  # where the model's own code names them
    limits: dict[str, Limit] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what the user should know about the file, one sentence each
    open_sizes: tuple[OpenSize, ...] = ()  # of an exported program; `inputs` have one of them
    card: Mapping[str, str] = field(default_factory=dict)  # "author", "license": as the model's card says
    parts: tuple[Part, ...] = ()  # that an app may run apart, in order
    part: str = ""  # the one of them that this is, "" of a whole model


@dataclass(frozen=True)
class Samples:
    """Inputs for validation and calibration: `batches[i]` maps each input name to one array of the input's
    shape.

    further: of other kinds, which are named in `kinds`, for verdicts only: recipes are calibrated and chosen
    on `batches`; left_out: why such a sample was not taken, one text each.
    """

    kind: Literal["synthetic", "real"]
    batches: tuple[dict[str, np.ndarray], ...]
    seed: int | None = None
    further: tuple[dict[str, np.ndarray], ...] = ()
    kinds: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def judged(self) -> Samples:
        """All of them alike, as a verdict rests on them."""
        kinds = (*(NORMAL for _ in self.batches), *self.kinds) if self.further else ()
        return Samples(self.kind, (*self.batches, *self.further), self.seed, (), kinds, self.left_out)

    @property
    def chosen_on(self) -> int:
        """Of `judged`: how many of the first are those that recipes are chosen on."""
        return self.kinds.count(NORMAL) or len(self.batches)


def refuse_complex(outputs: tuple[TensorSpec, ...]) -> None:
    """No output may hold complex numbers. Inputs of such types are refused where they are described."""
    names = [spec.name for spec in outputs if "complex" in spec.dtype]
    if names:
        raise UserError(
            f"The model returns complex numbers ({', '.join(names)}), which no artifact can hold.",
            "Return torch.view_as_real of them, or the real and the imaginary part.",
        )
