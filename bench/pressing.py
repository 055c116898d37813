"""A small module and its inputs in, how its conversion ended out: everything within this process.

The judge is the module itself in float32 on inputs of its own, which the conversion has not seen: its answers
against those of the saved artifact in the reference runner. Integers and truth values must be equal.
"""

import copy
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from near_edges import differs, near_edges

import cidermill
from cidermill.models.errors import UserError
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import OutputError, compare

TARGETS = ("coreml", "executorch-mps")
LEAST_DB = 40.0
BAD = ("FALSE PASS", "CRASH")


@dataclass(frozen=True)
class Ending:
    """kind: right, near edge (right in float32; in half precision wrong only where an element's own numbers
    lie near an edge), failed, refused, or one of BAD. detail: the worst output, the refusal's first lines
    or the traceback."""

    kind: str
    detail: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """The worst output of an artifact against the source: its PSNR (200 where equal, -200 where it cannot be
    compared)."""

    psnr_db: float
    detail: str


@dataclass(frozen=True)
class Model:
    """A module in eval mode and its example inputs. seed: of the inputs that it is judged on; particular: it
    takes none but the numbers of its examples (a logarithm, positive ones), which are its samples then."""

    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    seed: int = 0
    particular: bool = False


def press(model: Model, target: str) -> Ending:
    with tempfile.TemporaryDirectory() as name:
        try:
            report = convert_model(model, target, "float16", Path(name))
        except UserError as error:
            return Ending("refused", str(error))
        except Exception:  # what would be exit 70
            return Ending("CRASH", traceback.format_exc())
        messages = tuple(report.artifacts[0].warnings or ())
        path = Path(name) / report.artifacts[0].path
        try:
            judged = _judge(model, path)
            edges = judged.psnr_db < LEAST_DB and _judge(model, path, but_edges=True).psnr_db >= LEAST_DB
        except Exception:
            return Ending("CRASH", traceback.format_exc(), messages)
    if judged.psnr_db >= LEAST_DB:
        detail = judged.detail if report.verdict == "pass" else _complaint(report.artifacts[0])
        return Ending("right" if report.verdict == "pass" else "failed", detail, messages)
    if edges and _right_in_float32(model, target):
        return Ending("near edge", judged.detail, messages)
    return Ending("failed" if report.verdict == "fail" else "FALSE PASS", judged.detail, messages)


def _complaint(artifact: Any) -> str:
    """What the product finds wrong with an artifact that the judge finds right."""
    errors = artifact.validation.conversion
    said = [f"{error.output}: {error.problem or f'{error.psnr_db:.1f} dB'}" for error in errors]
    return "verdict: " + "; ".join(said)


def convert_model(model: Model, target: str, quant: str, folder: Path) -> Any:
    options: dict[str, Any] = {"cache": False, "force": True, "measure": False}
    if model.particular:
        options["samples"] = [tuple(as_taken(value) for value in model.inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cidermill.convert(
            model.module, model.inputs, target=target, quant=quant, out=folder, **options
        )


def _right_in_float32(model: Model, target: str) -> bool:
    with tempfile.TemporaryDirectory() as name:
        report = convert_model(model, target, "float32", Path(name))
        return _judge(model, Path(name) / report.artifacts[0].path).psnr_db >= LEAST_DB


def _judge(model: Model, path: Path, but_edges: bool = False) -> Judged:
    """but_edges: without the elements that half precision may put on the other side of an edge."""
    runner = open_runner(path, host="reference")
    worst = Judged(200.0, "")
    for values in own_inputs(model):
        wanted = answers(model.module, values)
        given = list(runner([as_taken(value) for value in values]).values())
        if but_edges:
            given = _mended(wanted, given, near_edges(answers, model.module, values))
        worst = min(worst, worst_of(wanted, given), key=lambda one: one.psnr_db)
    return worst


def _mended(wanted: list[np.ndarray], given: list[np.ndarray], near: list[np.ndarray]) -> list[np.ndarray]:
    """What the artifact gave, and the right value where it is wrong near an edge."""
    return [
        np.where(edge & differs(want, have), want, have) if have.shape == want.shape else have
        for want, have, edge in zip(wanted, map(np.asarray, given), near)
    ]


def worst_of(wanted: list[np.ndarray], given: list[np.ndarray]) -> Judged:
    """The worst output of one call; equal where the source itself does not answer with finite numbers."""
    if not all(bool(np.isfinite(array).all()) for array in wanted):
        return Judged(200.0, "")
    judged = [_compared(index, *pair) for index, pair in enumerate(zip(wanted, given, strict=True))]
    return min(judged, key=lambda one: one.psnr_db)


def own_inputs(model: Model) -> list[tuple[torch.Tensor, ...]]:
    """Two draws of the same shapes: normal, and uniform of twice the range. Integers, and particular numbers,
    are those of the example in another order, so that they stay in its range."""
    generator = torch.Generator().manual_seed(model.seed + 1)

    def drawn(value: torch.Tensor, uniform: bool) -> torch.Tensor:
        if not value.is_floating_point() or model.particular:
            return value.flatten()[torch.randperm(value.numel(), generator=generator)].reshape(value.shape)
        if uniform:
            return torch.rand(value.shape, generator=generator) * 4 - 2
        return torch.randn(value.shape, generator=generator)

    return [tuple(drawn(value, uniform) for value in model.inputs) for uniform in (False, True)]


def answers(module: torch.nn.Module, values: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        results = copy.deepcopy(module)(*[value.clone() for value in values])
    leaves = torch.utils._pytree.tree_leaves(results)
    return [leaf.detach().resolve_conj().resolve_neg().numpy() for leaf in leaves]


def as_taken(value: torch.Tensor) -> np.ndarray:
    return value.int().numpy() if value.dtype == torch.int64 else value.numpy()


def _compared(index: int, want: np.ndarray, have: np.ndarray) -> Judged:
    have = np.asarray(have)
    label = f"output {index} {list(want.shape)} {want.dtype}"
    if have.shape != want.shape:
        return Judged(-200.0, f"{label}: shape {list(have.shape)}")
    if want.dtype.kind in "biu":
        wrong = float(np.mean(have.astype(np.float64) != want)) if want.size else 0.0
        return Judged(-200.0 if wrong else 200.0, f"{label}: {wrong:.0%} differ")
    error: OutputError = compare([{"y": want}], [{"y": have}])[0]
    if error.nonfinite or error.psnr_db is None and np.abs(have).max(initial=0.0) > 1e-3:
        return Judged(-200.0, f"{label}: {error.nonfinite} not finite, or no zeros")
    psnr_db = 200.0 if error.psnr_db is None else error.psnr_db
    return Judged(psnr_db, f"{label}: {psnr_db:.1f} dB")
