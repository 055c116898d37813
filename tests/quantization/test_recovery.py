"""Tuning: it helps, it repeats itself bit for bit, and what comes out compresses exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.samples import synthetic
from cidermill.models.source import Limit, Samples, Source, TensorSpec
from cidermill.quantization.compress import compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.quantization.recovery import (
    Tuning,
    begin_training,
    can_stop,
    compressed_now,
    distance,
    run_program,
    state_of,
    teach,
    tune,
)

FEW = Tuning(steps=6, rate=1e-3, accumulation=2, refresh=2)


class Tied(torch.nn.Module):
    """Tokens -> logits, the embedding tied to the last layer, a norm between."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(96, 32)
        self.hidden, self.norm = torch.nn.Linear(32, 96), torch.nn.LayerNorm(96)
        self.out = torch.nn.Linear(96, 32, bias=False)
        self.head = torch.nn.Linear(32, 96, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.out(torch.relu(self.norm(self.hidden(self.embedding(ids))))))


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    module, spec = Tied().eval(), TensorSpec("ids", (1, 8), "int32")
    source = Source("tied", "module", "0", module, (spec,))
    samples = synthetic((spec,), 12, limits={"ids": Limit(0, 96)})
    return replace(capture(source, Samples("real", samples.batches[:1])), samples=samples)


def state(program) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone() for name, value in {**program.state_dict, **program.constants}.items()
    }


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


EXACT = [
    "int8", "int4", "int2", "int3:per-channel", "int4:minmax", "int4:asymmetric", "int8:per-tensor",
    "palettize2", "palettize4:group16", "palettize2:vector2", "palettize4:int8", "prune50",
    "prune50:channels", "prune:2of4", "prune50:global", "prune50+int8", "prune50+palettize4",
    "prune50+int4:asymmetric", "int8; head*=palettize2",
]  # fmt: skip


@pytest.mark.parametrize("recipe", EXACT)
def test_the_result_compresses_exactly(captured, recipe):
    recipe = parse_recipe(recipe)
    program, losses = tune(captured, recipe, FEW)
    again = compress(replace(captured, program=program), recipe)
    tuned, source = state(program), state(captured.program)
    assert again.weights and len(losses) == FEW.steps
    for name, weight in again.weights.items():
        assert torch.equal(weight.dense(), tuned[name]), name
        assert not torch.equal(tuned[name], compress(captured, recipe).weights[name].dense()), (
            "nothing was trained"
        )
    assert not torch.equal(tuned["norm.weight"], source["norm.weight"])


def test_tied_weights_stay_tied(captured):
    program, _ = tune(captured, parse_recipe("palettize2"), FEW)
    tied = [name for name in state(program) if "embedding" in name or "head" in name]
    assert len({state(program)[name].sum().item() for name in tied}) == 1


@pytest.mark.parametrize("recipe", ["int4", "palettize2", "prune50+int8"])
def test_it_is_repeatable_and_follows_the_seed(captured, recipe):
    recipe = parse_recipe(recipe)
    first, second, other = (state(tune(captured, recipe, replace(FEW, seed=seed))[0]) for seed in (0, 0, 1))
    assert same(first, second) and not same(first, other)


@pytest.mark.parametrize("recipe", ["int4", "palettize2", "prune50+int8"])
@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_that_stopped_and_went_on_is_the_same(captured, tmp_path, recipe, stop):
    recipe, held = parse_recipe(recipe), {}

    def keep(training):
        if training.step == stop:
            assert can_stop(training)
            torch.save(state_of(training), tmp_path / "state.pt")

    whole, losses = tune(captured, recipe, FEW, after_step=keep)
    held = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, their_losses = tune(captured, recipe, FEW, earlier=held)
    assert same(state(whole), state(resumed)) and losses == their_losses


def test_half_of_what_two_bits_lose_comes_back(captured):
    recipe = parse_recipe("palettize2")
    wanted = evaluate(captured.program, captured)
    name = captured.outputs[0].name

    def lost(program):
        return sum(
            float(np.square(one[name] - other[name]).sum())
            for one, other in zip(evaluate(program, captured), wanted)
        )

    tuned, _ = tune(captured, recipe, Tuning(steps=80, rate=2e-3, accumulation=4, loss="mse"))
    assert lost(tuned) < 0.5 * lost(decompressed(compress(captured, recipe)))


def test_the_loss_is_zero_on_the_teacher_itself(captured):
    for loss in ("soft", "mse"):
        training = begin_training(captured, parse_recipe("int8"), replace(FEW, loss=loss))
        answer = [value.requires_grad_() for value in teach(training, 0)]
        assert abs(float(distance(answer, [value.detach() for value in answer], training))) < 1e-6
        assert (
            float(
                distance(
                    [value + torch.randn_like(value) for value in answer],
                    [value.detach() for value in answer],
                    training,
                )
            )
            > 1e-3
        )


@pytest.mark.parametrize(
    "options, message",
    [({"steps": 0}, "--steps is 0"), ({"rate": 0.0}, "--lr 0 is"), ({"rate": float("nan")}, "--lr nan is"),
     ({"seed": 2**63}, "--seed is 9223372036854775808"), ({"accumulation": 0}, "--batch-accumulation is 0"),
     ({"loss": "l1"}, "unknown loss 'l1'"), ({"refresh": -1}, "--refresh is -1")],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(UserError) as error:
        Tuning(**options)
    assert message in error.value.message and error.value.hint


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("float16", "compresses nothing"),
        ("palettize4:scaled", "cannot be found again"),
        ("int4:gptq", "asks for gptq"),
        ("palettize2:sensitive", "asks for sensitive"),
        ("prune50:sparsegpt", "asks for sparsegpt"),
        ("w8a8", "calibrated, not trained"),
        ("int8; head*=int4:awq", "asks for awq"),
    ],
)
def test_recipes_that_are_not_trained(captured, recipe, message):
    with pytest.raises(UserError) as error:
        tune(captured, parse_recipe(recipe), FEW)
    assert message in error.value.message and error.value.hint


def test_a_rate_that_blows_up_is_refused_in_words(captured):
    with pytest.raises(UserError, match="the loss is (nan|inf)"):
        tune(captured, parse_recipe("palettize2"), replace(FEW, rate=1e30))


def test_a_source_that_overflows_on_a_sample_is_not_blamed_on_the_rate(captured):
    spec = TensorSpec("input", (1, 64), "float32")
    source = Source(
        "net",
        "module",
        "0",
        torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)).eval(),
        (spec,),
    )
    overflowing = capture(source, Samples("real", ({"input": np.full((1, 64), 3e38, np.float32)},)))
    with pytest.raises(UserError, match="output 'output' is not finite on sample 0 of --data"):
        tune(overflowing, parse_recipe("palettize2"), FEW)


@pytest.mark.parametrize("recipe", ["palettize2", "int4"])
def test_accumulated_gradients_are_those_of_one_large_batch(captured, recipe):
    tuning, found = replace(FEW, steps=1, accumulation=4, loss="mse"), {}
    tune(
        captured,
        parse_recipe(recipe),
        tuning,
        after_step=lambda training: found.update({**training.weights, **training.tables}),
    )
    training = begin_training(captured, parse_recipe(recipe), tuning)
    batch = torch.randperm(12, generator=torch.Generator().manual_seed(tuning.seed))[:4].tolist()
    dense = compressed_now(training)
    sum(
        distance(run_program(training, dense, index), teach(training, index), training) / 4 for index in batch
    ).backward()
    mine = {**training.weights, **training.tables}
    assert mine.keys() == found.keys() and any(value.grad is not None for value in mine.values())
    for name, value in mine.items():
        torch.testing.assert_close(found[name].grad, value.grad, rtol=1e-4, atol=1e-7)
