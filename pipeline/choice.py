"""Mixed precision: a captured model and a budget enter, the recipe that keeps it at the least loss leaves,
chosen layer by layer."""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.decibels import decibels
from ..models.digest import digest_samples
from ..models.errors import UserError
from .conversion import templates_of
from .quantities import Budget
from .report.records import BudgetSummary

if TYPE_CHECKING:
    from ..converters.artifact import WrittenArtifact
    from ..models.capture import Captured
    from ..models.roles import Layer
    from ..quantization.allocation import Problem
    from ..quantization.schemes import Recipe
    from ..quantization.sensitivity_table import MeasuredOn, Sensitivities
    from .plan import Plan
    from .stages import Stages

SAMPLES = 8  # on which sensitivities are measured
TABLE = "sensitivity.json"
RECIPE_FILE = "recipe.toml"
ATTEMPTS = 3  # conversions, where the first ones miss a size
ROUNDS = 8  # of correcting the sum of the layers' errors by the error of the whole model


@dataclass(frozen=True)
class Given:
    """The recipe that the user named: nothing is chosen. Answers what a `Choice` answers."""

    given: Recipe
    templates: Mapping[str, Any] = field(default_factory=dict)  # one conversion to each target shares none

    def attempts(self, stages: Stages) -> Iterator[Recipe]:
        yield self.given

    def accepts(self, written: Sequence[WrittenArtifact]) -> bool:
        return True

    def settle(self, recipe: Recipe, folder: Path) -> None:
        return None


@dataclass
class Choice:
    """Everything that the choice of a recipe rests on, so that it can be made again with another limit.

    schemes: by name; min_psnr: in decibels, given where there is no budget.
    """

    captured: Captured
    schemes: Mapping[str, Recipe]
    table: Sensitivities
    targets: tuple[str, ...]
    deployment_target: str
    budget: Budget | None
    min_psnr: float | None
    # bytes of the last choice on each target, as far as the budget counts them
    foreseen: dict[str, float] = field(default_factory=dict)
    # the most bytes that an artifact had more than that
    excess: dict[str, float] = field(default_factory=dict)
    smallest_tried: bool = False
    predicted_db: float | None = None
    attempts_left: int = ATTEMPTS
    templates: Mapping[str, Any] = field(default_factory=dict)  # what the attempts share

    def attempts(self, stages: Stages) -> Iterator[Recipe]:
        """Recipes to convert by, until one is accepted: each knows what the artifacts of the last came to."""
        while self.attempts_left:
            self.attempts_left -= 1
            with stages("choose"):
                recipe = self.recipe()
            yield recipe

    def accepts(self, written: Sequence[WrittenArtifact]) -> bool:
        """Whether the artifacts keep the budget, or no attempt is left."""
        return not self.attempts_left or not self.corrected(written)

    def settle(self, recipe: Recipe, folder: Path) -> BudgetSummary:
        """Write the chosen recipe into `folder`. -> the report's `budget`, see `summary`."""
        write_recipe(recipe, folder / RECIPE_FILE)
        return self.summary(recipe)

    def recipe(self) -> Recipe:
        """The recipe, with exact names as overrides. Raises UserError where the budget cannot be kept, with
        the nearest that can."""
        problem = self._problem()
        if self.budget is not None:
            picked = self._nearest_small(problem, self.budget)
            bits = dict(zip(self.targets, problem.total_bits(picked)))
            self.foreseen = {
                target: (bits[target] + self._fixed_bits(target, self.budget)) / 8
                - self.excess.get(target, 0.0)
                for target in self.targets
            }
        else:
            assert self.min_psnr is not None  # one of both is given
            picked = self._smallest_near(problem, self.min_psnr)
        self.predicted_db = decibels(1.0, problem.worst(picked))
        return self._recipe_of(picked)

    def _recipe_of(self, picked: np.ndarray) -> Recipe:
        """picked [layers]: the scheme of each."""
        schemes = list(self.schemes.values())
        return to_recipe(
            {
                layer.name: (math.prod(layer.shape), schemes[index])
                for layer, index in zip(self.captured.layers, picked)
            }
        )

    def corrected(self, artifacts: Sequence[WrittenArtifact]) -> bool:
        """Whether an artifact is larger than the budget; what was not foreseen of it then counts in the next
        choice."""
        if self.budget is None:
            return False
        real = {artifact.target: _counted_bytes(artifact, self.budget) for artifact in artifacts}
        allowed = self.budget.allowed_bits(self.parameters())
        if all(8 * size <= allowed for size in real.values()):
            return False
        for target, size in real.items():
            more = size - self.foreseen[target]
            self.excess[target] = more if self.smallest_tried else max(self.excess.get(target, 0.0), more)
        return True

    def summary(self, recipe: Recipe) -> BudgetSummary:
        """For the report, without what the artifacts came to."""
        budget = self.budget or Budget(f"{self.min_psnr:g} dB")  # of which only the text is read
        foreseen = self.predicted_db
        return BudgetSummary(
            asked=budget.text,
            size_bytes=budget.size_bytes,
            bits_per_weight=budget.bits_per_weight,
            min_psnr_db=self.min_psnr,
            schemes=tuple(self.schemes),
            recipe=recipe.name,
            predicted_psnr_db=foreseen if foreseen is not None and math.isfinite(foreseen) else None,
            parameters=self.parameters(),
        )

    def _problem(self) -> Problem:
        from ..quantization.allocation import Problem

        layers = self.captured.layers
        errors = [[self.table.errors[name][layer.name] for name in self.schemes] for layer in layers]
        bits = [
            [
                [self._bits(layer, scheme, target) for target in self.targets]
                for scheme in self.schemes.values()
            ]
            for layer in layers
        ]
        shape = (len(layers), len(self.schemes))
        return Problem(
            np.array(errors, float).reshape(*shape, len(self.table.outputs)),
            np.array(bits, float).reshape(*shape, len(self.targets)),
        )

    def _bits(self, layer: Layer, scheme: Recipe, target: str) -> float:
        """Of a layer under a scheme: its tensors' alone for a budget of bits per weight, of all that the file
        needs for it otherwise."""
        from .predict import footprint

        bits, around = footprint(layer, scheme, target, self.deployment_target)
        by_weight = self.budget is not None and self.budget.bits_per_weight is not None
        return bits if by_weight else bits + 8 * around

    def _nearest_small(self, problem: Problem, budget: Budget) -> np.ndarray:
        """-> [layers] the scheme of each with the least error within the budget."""
        from ..quantization.allocation import least_error

        fixed = np.array([self._fixed_bits(target, budget) for target in self.targets])
        allowed = budget.allowed_bits(self.parameters())
        smallest = problem.bits.min(axis=1).sum(axis=0) + fixed
        picked = least_error(problem, np.maximum(allowed - fixed, 1.0))
        # what other choices had too much need not hold for the smallest
        if picked is None and self.excess and not self.smallest_tried:
            self.smallest_tried, picked = True, problem.bits.sum(axis=2).argmin(axis=1)
        if picked is None:
            # the graph is foreseen, unless an artifact was made
            about = "" if self.excess or budget.size_bytes is None else "about "
            raise UserError(
                f"No choice of {', '.join(self.schemes)} keeps {budget.text}: the nearest possible is "
                f"{about}{self._in_words(float(smallest.max()), budget)}.",
                "Raise --budget, or add smaller schemes, such as --schemes"
                " int8,int4,palettize4,palettize2,palettize1.",
            )
        if self.min_psnr is not None and decibels(1.0, problem.worst(picked)) < self.min_psnr:
            raise UserError(
                f"{budget.text} and {self.min_psnr:g} dB cannot be kept together: within the size, the"
                f" nearest possible is about {decibels(1.0, problem.worst(picked)):.1f} dB.",
                "Raise --budget or lower --min-psnr.",
            )
        return picked

    def _in_words(self, bits: float, budget: Budget) -> str:
        """A size in the unit of the budget, rounded up."""
        if budget.bits_per_weight is not None:
            return f"{math.ceil(bits / self.parameters() * 100) / 100:g}bpw"
        unit, scale = next(
            (name, scale)
            for name, scale in (("MB", 1e6), ("kB", 1e3), ("B", 1))
            if bits / 8 >= scale or scale == 1
        )
        return f"{math.ceil(bits / 8 / scale * 100) / 100:g}{unit}"

    def _fixed_bits(self, target: str, budget: Budget) -> float:
        """What the budget counts of an artifact beside its compressed weights."""
        from .predict import graph_bytes, other_bytes

        graph = (
            0
            if budget.bits_per_weight is not None
            else graph_bytes(self.captured, next(iter(self.schemes.values())), target)
        )
        return 8 * (other_bytes(self.captured) + graph + self.excess.get(target, 0.0))

    def parameters(self) -> int:
        """Elements of all stored tensors, each storage once."""
        from ..models.tensors import storage_of

        return sum({storage_of(tensor): tensor.data.numel() for tensor in self.captured.tensors}.values())

    def _smallest_near(self, problem: Problem, min_psnr: float) -> np.ndarray:
        """-> [layers] the schemes with the fewest bits within --min-psnr: the sum of the layers' errors is
        only a guess of the whole, which is measured and corrected for."""
        from ..quantization.allocation import least_bits

        most_error = 10 ** (-min_psnr / 10)
        allowed, best, fewest = most_error, None, math.inf
        for _ in range(ROUNDS):
            picked = least_bits(problem, allowed)
            if picked is None:
                break
            real = self._measured_error(picked)
            bits = float(problem.total_bits(picked).sum())
            if real <= most_error and bits < fewest:
                best, fewest = picked, bits
            if most_error / 1.1 <= real <= most_error:
                break
            allowed = min(allowed * most_error / real if real else allowed * 10, 10 * allowed) * (
                0.97 if real > most_error else 1.0
            )
        if best is None:
            finest = problem.errors.sum(axis=2).argmin(axis=1)
            raise UserError(
                f"No choice of {', '.join(self.schemes)} keeps {min_psnr:g} dB: the nearest possible is "
                f"{decibels(1.0, self._measured_error(finest)):.1f} dB.",
                "Lower --min-psnr, or add finer schemes, such as --schemes int8,float16.",
            )
        return best

    def _measured_error(self, picked: np.ndarray) -> float:
        """Of the worst output, of the whole model with every layer compressed as picked."""
        from ..models.evaluate import evaluate
        from ..quantization.compress import compress, decompressed
        from ..validation.judge.compare import compare

        compressed = compress(self.captured, self._recipe_of(picked))
        errors = compare(self.captured.reference, evaluate(decompressed(compressed), self.captured))
        return max(
            (10 ** (-error.psnr_db / 10) for error in errors if error.psnr_db is not None), default=0.0
        )


def _counted_bytes(artifact: WrittenArtifact, budget: Budget) -> int:
    """What a budget counts of an artifact: the whole file, or the tensors in it."""
    from ..validation.judge.audit import audit
    from .judge import tensor_bytes

    return (
        artifact.size_bytes if budget.size_bytes is not None else tensor_bytes(audit(artifact.path, ()).bytes)
    )


def to_recipe(layers: Mapping[str, tuple[int, Recipe]]) -> Recipe:
    """layer -> (elements, recipe): one recipe, the general part of which is the one that most elements get,
    the rest by exact names."""
    from ..quantization.schemes import Recipe

    weight = Counter[Recipe]()
    for elements, recipe in layers.values():
        weight[recipe] += elements
    general = weight.most_common(1)[0][0] if weight else Recipe()
    overrides = tuple((_exactly(name), recipe) for name, (_, recipe) in layers.items() if recipe != general)
    return replace(general, overrides=overrides)


def _exactly(name: str) -> str:
    """A pattern that matches this name only."""
    return (
        re.sub(r"([\[*?])", r"[\1]", name)
        if not fnmatch.fnmatchcase(name, name) or re.search(r"[*?\[]", name)
        else name
    )


def choose(plan: Plan, captured: Captured, folder: Path, stages: Stages) -> Given | Choice:
    """The recipe that was given, or the ones that the plan's budget lets choose."""
    if not plan.chooses:
        return Given(plan.recipe)
    with stages("measure") as step:
        return prepare_choice(captured, plan, folder, step)


def prepare_choice(captured: Captured, plan: Plan, folder: Path, step: Callable[[str], None]) -> Choice:
    """Measure the sensitivities that are not known yet, keep the table in `folder`, and be ready to
    choose."""
    from ..quantization.sensitivity import measure
    from ..quantization.sensitivity_table import write_table

    schemes = {scheme.name: scheme for scheme in plan.schemes}
    few = replace(
        captured,
        samples=replace(captured.samples, batches=captured.samples.batches[:SAMPLES]),
        reference=captured.reference[:SAMPLES],
    )
    measured_on = measured_on_of(few)
    table = measure(few, schemes, measured_on, _earlier_table(plan, captured, measured_on), step)
    write_table(table, folder / TABLE)
    return Choice(
        captured, schemes, table, plan.targets, plan.deployment_target, plan.budget, plan.min_psnr,
        templates=templates_of(captured),
    )  # fmt: skip


def measured_on_of(captured: Captured) -> MeasuredOn:
    """What a table of sensitivities of this model on these samples belongs to."""
    from ..quantization.sensitivity_table import MeasuredOn

    model = f"{captured.source.sha256} {' '.join(str(spec) for spec in captured.inputs)}"
    return MeasuredOn(model, digest_samples(captured.samples.batches))


def _earlier_table(plan: Plan, captured: Captured, measured_on: MeasuredOn) -> Sensitivities | None:
    """The table that the user names, which must fit, or the one of an earlier run into the same folder, if it
    fits."""
    from ..quantization.sensitivity_table import fits, read_table

    if plan.sensitivity is not None:
        table = read_table(plan.sensitivity)
        if different := fits(table, captured, measured_on):
            hint = "Leave --sensitivity out to measure anew, or repeat --input, --samples and --name."
            raise UserError(f"{plan.sensitivity} was measured on {different}.", hint)
        return table
    try:
        table = read_table(plan.folder / TABLE)
    except UserError:
        return None
    return None if fits(table, captured, measured_on) else table


def write_recipe(recipe: Recipe, path: Path) -> None:
    """As a file that `--quant` takes."""
    import json

    lines = [f"recipe = {json.dumps(recipe.words)}", "", "[layers]"]
    lines += [f"{json.dumps(pattern)} = {json.dumps(layer.words)}" for pattern, layer in recipe.overrides]
    path.write_text("\n".join(lines) + "\n")
