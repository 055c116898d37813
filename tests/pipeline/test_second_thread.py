"""What an artifact is compared with is computed beside its conversion: the same figures, no traces of it."""

import sys
import threading
import time

import pytest
import torch

import cidermill
from cidermill.models.errors import UserError
from cidermill.pipeline import run as straight_run
from cidermill.pipeline.second_thread import Abandoned, computing
from cidermill.pipeline.yardstick import yardstick_of
from cidermill.quantization.recipe import parse_recipe


def test_the_result_and_what_was_raised():
    with computing(lambda first, second, proceed: first + second, 1, 2) as result:
        assert result() == 3
    with pytest.raises(ZeroDivisionError), computing(lambda proceed: 1 / 0) as result:
        result()


@pytest.mark.parametrize("error", [UserError("wrong"), KeyboardInterrupt()])
def test_an_error_does_not_wait_for_the_rest(error):
    seen = []

    def endless(proceed):
        seen.append(threading.current_thread())
        try:
            while True:
                proceed("node", ())
                time.sleep(0.001)
        except Abandoned:
            seen.append("abandoned")
            raise

    before = sys.getswitchinterval()
    with pytest.raises(type(error)), computing(endless):
        while not seen:
            time.sleep(0.001)
        raise error
    assert seen[0] is not threading.main_thread() and seen[1] == "abandoned"
    assert not seen[0].is_alive() and sys.getswitchinterval() == before


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (torch.nn.Linear(64, 64), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("recipe", [pytest.param("w8a8", marks=pytest.mark.slow), "int8"])
def test_nothing_is_traced_in_the_second_thread(blocks, tmp_path, monkeypatch, recipe):
    """torch.fx and fake tensors belong to one thread at a time. Several conversions in one process, because
    the first one is slowed down by its imports."""
    from torch.fx.experimental import proxy_tensor

    traced_in = set()
    trace = proxy_tensor._MakefxTracer.trace

    def watched(self, *arguments):
        traced_in.add(threading.current_thread())
        return trace(self, *arguments)

    monkeypatch.setattr(proxy_tensor._MakefxTracer, "trace", watched)
    for turn in range(2):
        report = cidermill.convert(
            blocks, (torch.zeros(1, 64),), target=["coreml", "executorch-mps"], quant=recipe,
            out=tmp_path / str(turn), min_psnr=1,
        )  # fmt: skip
        assert len(report.artifacts) == 2
    assert traced_in == {threading.main_thread()}


def test_the_figures_are_those_of_one_thread(blocks, tmp_path, monkeypatch):
    given = {"quant": "int4", "target": ["coreml", "executorch-mps"]}
    beside = cidermill.convert(blocks, (torch.zeros(1, 64),), out=tmp_path / "beside", **given)

    class AtOnce:
        def __init__(self, function, *arguments):
            self.value = function(*arguments)

        def __enter__(self):
            return lambda: self.value

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(straight_run, "computing", AtOnce)
    alone = cidermill.convert(blocks, (torch.zeros(1, 64),), out=tmp_path / "alone", **given)
    assert [row.sha256 for row in beside.artifacts] == [row.sha256 for row in alone.artifacts]
    assert [row.validation for row in beside.artifacts] == [row.validation for row in alone.artifacts]


class TwoAttempts:
    """A choice that takes the second recipe."""

    templates = {}

    def __init__(self, plan, captured, folder, stages):
        self.answers = iter((False, True))

    def attempts(self, stages):
        yield from (parse_recipe("int8"), parse_recipe("int4"))

    def accepts(self, written):
        return next(self.answers)

    def settle(self, recipe, folder):
        return None


def test_what_belongs_to_a_rejected_recipe_is_abandoned(blocks, tmp_path, monkeypatch):
    ended = []

    def slow_for_int8(compressed, *arguments, proceed):
        try:
            while compressed.recipe.name == "int8":
                proceed()
                time.sleep(0.001)
            return yardstick_of(compressed, *arguments, proceed=proceed)
        finally:
            ended.append((compressed.recipe.name, sys.exc_info()[0]))

    monkeypatch.setattr(straight_run, "choose", TwoAttempts)
    monkeypatch.setattr(straight_run, "yardstick_of", slow_for_int8)
    report = cidermill.convert(blocks, (torch.zeros(1, 64),), out=tmp_path / "out")
    assert ended == [("int8", Abandoned), ("int4", None)]
    assert [row.compression.weights[0].requested for row in report.artifacts] == ["int4"]
