"""The solver against trying every combination."""

import itertools

import numpy as np
import pytest

from cidermill.quantization.allocation import Problem, least_bits, least_error


def random_problem(seed: int) -> tuple[Problem, list[np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(seed)
    layers, schemes, outputs, targets = (
        rng.integers(1, 6),
        rng.integers(2, 5),
        rng.integers(1, 3),
        rng.integers(1, 3),
    )
    errors = 10 ** rng.uniform(-9, -1, (layers, schemes, outputs))
    bits = rng.integers(1000, 10**6, (layers, schemes, targets)).astype(float)
    return (
        Problem(errors, bits),
        [np.array(choice) for choice in itertools.product(range(schemes), repeat=layers)],
        rng,
    )


def error_of(problem: Problem, choice: np.ndarray) -> float:
    return max(
        sum(problem.errors[layer, pick, output] for layer, pick in enumerate(choice))
        for output in range(problem.errors.shape[2])
    )


def bits_of(problem: Problem, choice: np.ndarray) -> np.ndarray:
    return np.array(
        [
            sum(problem.bits[layer, pick, target] for layer, pick in enumerate(choice))
            for target in range(problem.bits.shape[2])
        ]
    )


@pytest.mark.parametrize("seed", range(60))
def test_least_error_is_the_best_of_all_combinations(seed):
    problem, choices, rng = random_problem(seed)
    sizes = np.array([bits_of(problem, choice) for choice in choices])
    most = 0.98 * sizes.min(axis=0) + (sizes.max(axis=0) - sizes.min(axis=0)) * rng.uniform(0, 0.6)
    allowed = [error_of(problem, choice) for choice, size in zip(choices, sizes) if (size <= most).all()]
    found = least_error(problem, most)
    assert (found is None) == (not allowed)
    if allowed:
        assert (bits_of(problem, found) <= most).all()
        assert error_of(problem, found) <= min(allowed) * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(60))
def test_least_bits_is_the_best_of_all_combinations(seed):
    problem, choices, rng = random_problem(seed)
    most = float(np.median([error_of(problem, choice) for choice in choices])) * rng.uniform(0.01, 1)
    allowed = [bits_of(problem, choice).sum() for choice in choices if error_of(problem, choice) <= most]
    found = least_bits(problem, most)
    assert (found is None) == (not allowed)
    if allowed:
        assert error_of(problem, found) <= most
        assert bits_of(problem, found).sum() <= min(allowed) * (1 + 1e-5)


def test_a_budget_of_exactly_the_smallest_size_is_kept():
    problem = Problem(np.array([[[0.0], [1.0]], [[0.0], [1.0]]]), np.array([[[8e6], [1e6]], [[8e6], [3e6]]]))
    assert least_error(problem, np.array([4e6])).tolist() == [1, 1]
    assert least_error(problem, np.array([4e6 - 1])) is None


def test_hundreds_of_layers_take_seconds():
    rng = np.random.default_rng(0)
    bits = rng.integers(10**4, 10**6, (300, 1, 1)) * np.array([8.0, 4.5, 4.0, 2.0, 16.0]).reshape(1, 5, 1)
    errors = 10 ** rng.uniform(-9, -3, (300, 1, 1)) * np.array([1e-3, 1e-1, 1e-1, 1.0, 0.0]).reshape(1, 5, 1)
    problem = Problem(errors, bits)
    found = least_error(problem, bits[:, 0].sum(axis=0) / 2)
    assert problem.total_bits(found) <= bits[:, 0].sum() / 2
    assert problem.worst(found) < errors[:, 1].sum()  # better than the one scheme for all that fits


def test_a_model_without_layers_has_nothing_to_choose():
    nothing = Problem(np.zeros((0, 2, 1)), np.zeros((0, 2, 1)))
    assert least_bits(nothing, 1e-3).shape == least_error(nothing, np.array([8.0])).shape == (0,)
