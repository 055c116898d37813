"""Training-time recovery: Captured + Recipe + data enter, a program leaves whose weights compress exactly to
the recipe.

The compressed model is taught by its own uncompressed self (distillation, Hinton et al. 2015,
arXiv:1503.02531): no labels are needed. Equal arguments give equal bits, with or without a stop on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..models.capture import Captured
from ..models.errors import UserError
from ..models.interpret import always, input_tensors, prepare, run
from ..models.quiet import quiet
from ..models.roles import Role
from ..models.samples import blaming
from ..models.tensors import Storage, Tensor, storage_of
from .compress import compress, with_weights
from .fake import fake_weight, learns_table, table_of
from .schemes import Linear, Palettize, Recipe
from .weight import CompressedWeight

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from ..models.source import TensorSpec

LOSSES = ("auto", "soft", "mse")
MOST = 2**63  # what torch's generator takes as a seed
TEMPERATURE = 2.0
SETTLE_ROUNDS = 32
TEACHER_BYTES = 1 << 28  # answers of the teacher that are kept rather than computed again
BETAS = (0.9, 0.99)  # a shorter memory than Adam's usual 0.999: runs are short, and tables are refreshed


@dataclass(frozen=True)
class Tuning:
    """How to train. steps: updates of the weights, each from `accumulation` samples. rate: Adam's, falling to
    zero along a half cosine.

    refresh: scales and masks are fitted anew every so many steps (0: never); tables are learned. loss: "soft"
    (the divergence of softened probabilities), "mse" (squared error relative to the teacher's mean square),
    "auto" (soft for outputs that look like logits).
    """

    steps: int = 200
    rate: float = 1e-4
    accumulation: int = 8
    seed: int = 0
    refresh: int = 10
    loss: str = "auto"

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--steps", self.steps, 1),
            ("--batch-accumulation", self.accumulation, 1),
            ("--seed", self.seed, 0),
            ("--refresh", self.refresh, 0),
        ):
            if not least <= value < MOST:
                hint = "--steps 200 --batch-accumulation 8 is a start."
                allowed = f"{least} and more" if value < least else f"numbers up to {MOST - 1}"
                raise UserError(f"tune: {option} is {value}; allowed are {allowed}.", hint)
        if not 0 < self.rate < math.inf:
            raise UserError(
                f"tune: --lr {self.rate:g} is not possible; allowed are positive numbers.",
                "--lr 1e-4 is a start.",
            )
        if self.loss not in LOSSES:
            raise UserError(
                f"tune: unknown loss {self.loss!r}; allowed are {', '.join(LOSSES)}",
                "Leave --loss out to choose by the outputs.",
            )


@dataclass
class Training:
    """What changes while training; `state_of` and `restore` carry all of it between processes, apart from
    `forms`, which follow from it.

    weights: one leaf for each storage that is trained, by its first name; tables: learned lookup tables.
    forms: what the kernels last made of the weights. order: indices of the samples that are left in this
    epoch.
    """

    captured: Captured
    recipe: Recipe
    tuning: Tuning
    names: dict[str, str]  # every name of the program's tensors that are trained -> its name in `weights`
    weights: dict[str, torch.Tensor]
    forms: dict[str, CompressedWeight]
    tables: dict[str, torch.Tensor]
    optimiser: torch.optim.Adam
    generator: torch.Generator
    order: list[int] = field(default_factory=list)
    step: int = 0
    losses: list[float] = field(default_factory=list)
    teacher: dict[int, list[torch.Tensor]] = field(default_factory=dict)


class Tuned(NamedTuple):
    """A program with the decompressed weights in place, and the loss of every step."""

    program: ExportedProgram
    losses: list[float]


def tune(
    captured: Captured,
    recipe: Recipe,
    tuning: Tuning,
    earlier: dict[str, Any] | None = None,
    after_step: Callable[[Training], None] | None = None,
) -> Tuned:
    """Train on captured.samples.

    earlier: what `state_of` gave at a stop; `after_step` is told the training after every step. Raises
    UserError for recipes that cannot be trained.
    """
    check_recipe(recipe)
    with repeatable(), quiet():
        training = begin_training(captured, recipe, tuning)
        if earlier is not None:
            restore(training, earlier)
        while training.step < tuning.steps:
            if training.step and tuning.refresh and training.step % tuning.refresh == 0:
                refresh(training)
            training.losses.append(_update(training))
            training.step += 1
            if after_step:
                after_step(training)
        return Tuned(settle(training), training.losses)


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError for what training takes the place of, or cannot hold exactly."""
    if not recipe.compresses:
        raise UserError(
            f"tune: {recipe.name} compresses nothing, so nothing can be recovered.",
            "Give a recipe such as --recipe palettize2.",
        )
    for layer in recipe.layers:
        values = layer.values
        calibrated = (isinstance(values, Linear) and values.method) or (
            isinstance(values, Palettize) and values.sensitive and "sensitive"
        )
        calibrated = calibrated or (
            layer.prune is not None and layer.prune.kind == "sparsegpt" and "sparsegpt"
        )
        if calibrated:
            raise UserError(
                f"tune: {layer.words} asks for {calibrated}, whose place training takes.",
                f"Leave :{calibrated} out of the recipe.",
            )
        if isinstance(values, Palettize) and values.scaled:
            hint = f"Use groups instead: palettize{values.bits}:group16."
            raise UserError(
                f"tune: the scales of {layer.words} cannot be found again from the tuned weights.", hint
            )
        if layer.activations is not None:
            raise UserError(
                "tune: w8a8 is calibrated, not trained: only weights are tuned.",
                "Tune with int8, and convert the result with w8a8.",
            )


@contextmanager
def repeatable() -> Iterator[None]:
    """Only algorithms whose result does not depend on the order in which threads finish."""
    before, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def begin_training(captured: Captured, recipe: Recipe, tuning: Tuning) -> Training:
    """A training before its first step: the source's own weights, and the forms that the kernels give
    them."""
    forms = compress(captured, recipe).weights
    names, weights = _trainable(captured)
    tables = {
        name: table_of(forms[name]).requires_grad_()
        for name in weights
        if name in forms and learns_table(forms[name])
    }
    optimiser = torch.optim.Adam(
        [*weights.values(), *tables.values()], lr=tuning.rate, betas=BETAS, foreach=False
    )
    generator = torch.Generator().manual_seed(tuning.seed)
    return Training(captured, recipe, tuning, names, weights, forms, tables, optimiser, generator)


def _trainable(captured: Captured) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """-> (name -> first name of its storage, first name -> leaf tensor) of compressible weights and of the
    source's other parameters.

    Constants that capture folded (positions, masks) are none of the source's parameters and stay as they are.
    """
    source = captured.source
    own = (
        set(source.program.graph_signature.parameters)
        if source.program is not None
        else {name for name, _ in source.module.named_parameters()}
    )
    modules = {name.rpartition(".")[0] for name in own}
    first_names: dict[Storage, str] = {}
    names: dict[str, str] = {}
    weights: dict[str, torch.Tensor] = {}
    for tensor in captured.tensors:
        if not _is_trained(tensor, captured.roles[tensor.name], own, modules):
            continue
        names[tensor.name] = first_names.setdefault(storage_of(tensor), tensor.name)
        if names[tensor.name] == tensor.name:
            weights[tensor.name] = (
                tensor.data.detach().float().clone(memory_format=torch.contiguous_format).requires_grad_()
            )
    return names, weights


def _is_trained(tensor: Tensor, role: Role | str, own: set[str], modules: set[str]) -> bool:
    if not tensor.data.is_floating_point():
        return False
    return isinstance(role, Role) or (
        tensor.is_parameter and (tensor.name in own or tensor.name.rpartition(".")[0] in modules)
    )


def refresh(training: Training) -> None:
    """Let the kernels fit scales and masks to the weights as they are now. Tables are parameters: they keep
    what they learned."""
    if all(learns_table(form) and form.mask is None for form in training.forms.values()):
        return
    now = {name: training.weights[first].detach() for name, first in training.names.items()}
    training.forms = compress(
        replace(training.captured, program=with_weights(training.captured.program, now)), training.recipe
    ).weights


def compressed_now(training: Training) -> dict[str, torch.Tensor]:
    """Every trained tensor as the compressed model holds it, by its first name; gradients reach `weights` and
    `tables`."""
    forms, tables = training.forms, training.tables
    return {
        name: fake_weight(weight, forms[name], tables.get(name)) if name in forms else weight
        for name, weight in training.weights.items()
    }


def _update(training: Training) -> float:
    """One step: the gradients of `accumulation` samples, then Adam. -> the mean loss"""
    tuning, total = training.tuning, 0.0
    for group in training.optimiser.param_groups:
        group["lr"] = tuning.rate * 0.5 * (1 + math.cos(math.pi * training.step / tuning.steps))
    dense = compressed_now(training)
    # so that the estimator runs once for all samples
    leaves = {name: value.detach().requires_grad_() for name, value in dense.items()}
    for _ in range(tuning.accumulation):
        index = _next_sample(training)
        answers = teach(training, index)
        loss = distance(run_program(training, leaves, index), answers, training) / tuning.accumulation
        loss.backward()
        total += float(loss)
    if not math.isfinite(total):
        raise UserError(
            f"tune: the loss is {total} at step {training.step + 1}.",
            f"Choose a smaller --lr than {tuning.rate:g}.",
        )
    used = [name for name in dense if leaves[name].grad is not None]
    training.optimiser.zero_grad()
    torch.autograd.backward([dense[name] for name in used], [leaves[name].grad for name in used])
    training.optimiser.step()
    return total


def _next_sample(training: Training) -> int:
    if not training.order:
        training.order = torch.randperm(
            len(training.captured.samples.batches), generator=training.generator
        ).tolist()
    return training.order.pop(0)


def run_program(training: Training, values: dict[str, torch.Tensor], index: int) -> list[torch.Tensor]:
    """The outputs of the program on sample `index` with the trained tensors `values` (by first name)."""
    captured = training.captured
    makers = {name: always(values[first]) for name, first in training.names.items()}
    runnable = prepare(captured.program, makers, captured.tensors)
    return list(run(runnable, [input_tensors(captured.inputs, captured.samples.batches[index])])[0])


def teach(training: Training, index: int) -> list[torch.Tensor]:
    """What the uncompressed model answers on sample `index`."""
    if index in training.teacher:
        return training.teacher[index]
    with torch.no_grad(), blaming(training.captured.samples, index):
        source = {tensor.name: tensor.data.detach() for tensor in training.captured.tensors}
        answer = run_program(training, {first: source[first] for first in training.weights}, index)
    for spec, value in zip(training.captured.outputs, answer):
        if not value.isfinite().all():
            hint = "Remove such samples, or scale them to what the model was trained on."
            raise UserError(
                f"tune: the source model's own output {spec.name!r} is not finite on sample {index} of"
                " --data.",
                hint,
            )
    if len(training.teacher) * sum(value.nbytes for value in answer) < TEACHER_BYTES:
        training.teacher[index] = answer
    return answer


def distance(answers: list[torch.Tensor], teacher: list[torch.Tensor], training: Training) -> torch.Tensor:
    """The loss: the sum over the floating-point outputs, each relative to the teacher's own size."""
    total = torch.zeros(())
    for spec, answer, target in zip(training.captured.outputs, answers, teacher):
        if not target.is_floating_point() or not answer.requires_grad:
            continue
        if training.tuning.loss == "soft" or (
            training.tuning.loss == "auto" and _like_logits(spec, len(teacher))
        ):
            total = total + _divergence(answer, target)
        else:
            total = total + (answer - target).square().mean() / target.square().mean().clamp_min(1e-12)
    return total


def _like_logits(spec: TensorSpec, outputs: int) -> bool:
    """An output called logits, or the only one with [batch, classes]."""
    return "logits" in spec.name or (outputs == 1 and len(spec.shape) == 2 and spec.shape[1] > 1)


def _divergence(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the softened probabilities along the last axis, mean over the rest;
    times T^2 (Hinton et al. 2015)."""
    student, teacher = (torch.log_softmax(value / TEMPERATURE, -1) for value in (answer, target))
    return TEMPERATURE**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


def settle(training: Training) -> ExportedProgram:
    """The program with the decompressed weights; compressed again, they come back bit for bit.

    A kernel may choose another scale for weights that lie on a grid already, when none of them reaches the
    grid's end: its answer is then taken as the weight, until nothing changes.
    """
    with torch.no_grad():
        dense = compressed_now(training)
    values = {name: dense[first] for name, first in training.names.items()}
    for _ in range(SETTLE_ROUNDS):
        program = with_weights(training.captured.program, values)
        decoded = {
            name: weight.dense()
            for name, weight in compress(
                replace(training.captured, program=program), training.recipe
            ).weights.items()
        }
        if all(torch.equal(decoded[name], values[name]) for name in decoded):
            return program
        values |= decoded
    hint = "This is a defect of cidermill: please report the recipe."
    raise UserError(f"tune: {training.recipe.name} does not come to rest on the tuned weights.", hint)


def state_of(training: Training) -> dict[str, Any]:
    """Everything that the rest of a training depends on, as tensors and plain values."""
    return {
        "weights": {name: value.detach() for name, value in training.weights.items()},
        "tables": {name: value.detach() for name, value in training.tables.items()},
        "optimiser": training.optimiser.state_dict(),
        "generator": training.generator.get_state(),
        "order": training.order,
        "step": training.step,
        "losses": training.losses,
    }


def restore(training: Training, earlier: dict[str, Any]) -> None:
    """Put back what `state_of` gave. Scales and masks between two refreshes are not in it: `can_stop` says
    after which steps to save."""
    with torch.no_grad():
        for own, values in ((training.weights, earlier["weights"]), (training.tables, earlier["tables"])):
            for name, value in own.items():
                value.copy_(values[name])
    training.optimiser.load_state_dict(earlier["optimiser"])
    training.generator.set_state(earlier["generator"])
    training.order, training.step, training.losses = (
        list(earlier["order"]),
        earlier["step"],
        list(earlier["losses"]),
    )


def can_stop(training: Training) -> bool:
    """Whether the forms of the next step follow from what `state_of` holds: before a refresh, or where there
    is none."""
    tuning = training.tuning
    return not tuning.refresh or training.step % tuning.refresh == 0 or training.step == tuning.steps
