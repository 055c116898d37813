"""The programs of bench/fuzz_modules.py: the same for a seed, and modules that answer. Converting them takes
minutes and is left to the command itself."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def fuzz_modules():
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("fuzz_modules", BENCH / "fuzz_modules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCH))


def test_a_seed_gives_the_same_programs(fuzz_modules):
    texts = fuzz_modules.drawn(3, 8)
    assert texts == fuzz_modules.drawn(3, 8) and len(set(texts)) == 8
    assert texts != fuzz_modules.drawn(4, 8)


def test_programs_answer_with_numbers_that_differ(fuzz_modules):
    for text in fuzz_modules.drawn(5, 8):
        module, inputs = fuzz_modules.made(text)
        answers = torch.utils._pytree.tree_leaves(module(*inputs))
        assert all(answer.numel() for answer in answers), text


def test_refusals_are_counted_by_operator(fuzz_modules):
    detail = "Core ML cannot express 1 operator of this model:\n  - aten.i0.default (program:16): float32[1]"
    assert fuzz_modules.without_places(detail) == "aten.i0.default"
