"""Which scheme each layer gets: errors and sizes of every (layer, scheme) enter, the best choice within a
budget leaves, exactly.

A multiple-choice knapsack, solved as a mixed-integer linear programme by HiGHS (scipy.optimize.milp). Errors
of layers are taken to add up.
"""

from dataclasses import dataclass

import numpy as np

# HiGHS may overstep a constraint by 1e-6 of its right side (primal_feasibility_tolerance), so a little is
# kept back
MARGIN = 2e-6
ROUNDS = 6  # of rescaling the objective: HiGHS stops within 1e-6, absolute, of the optimum


@dataclass(frozen=True)
class Problem:
    """errors [layers, schemes, outputs]: what each choice adds to the mean squared error of each output,
    relative to its peak squared.

    bits [layers, schemes, targets]: what each choice stores. inf where a layer cannot have a scheme.
    """

    errors: np.ndarray
    bits: np.ndarray

    def worst(self, choice: np.ndarray) -> float:
        """The error of the worst output of a choice [layers]."""
        return float(self.errors[np.arange(len(choice)), choice].sum(axis=0).max(initial=0.0))

    def total_bits(self, choice: np.ndarray) -> np.ndarray:
        """-> [targets]"""
        bits: np.ndarray = self.bits[np.arange(len(choice)), choice].sum(axis=0)
        return bits


def least_error(problem: Problem, most_bits: np.ndarray) -> np.ndarray | None:
    """-> [layers] the scheme of each with the least error of the worst output, within `most_bits` [targets];
    None where nothing is small enough."""
    best, scale = None, float(problem.errors.max(axis=1).sum(axis=0).max(initial=0.0)) or 1.0
    for _ in range(ROUNDS):
        choice = _solve_worst(problem, most_bits, scale)
        if choice is None:
            return best if best is not None else _smallest(problem, most_bits)
        best = choice if best is None or problem.worst(choice) < problem.worst(best) else best
        if problem.worst(best) > 0.1 * scale or problem.worst(best) == 0:
            return best
        scale = problem.worst(best)
    return best


def _smallest(problem: Problem, most_bits: np.ndarray) -> np.ndarray | None:
    """The smallest choice, which a budget of exactly its size allows although nothing is left to keep
    back."""
    choice = problem.bits.sum(axis=2).argmin(axis=1)
    return choice if (problem.total_bits(choice) <= most_bits).all() else None


def least_bits(problem: Problem, most_error: float) -> np.ndarray | None:
    """-> [layers] the scheme of each with the fewest bits (of all targets together), every output's error at
    most `most_error`; None: none."""
    cost = problem.bits.sum(axis=2)
    least = float(cost.min(axis=1).sum())
    return _milp(
        cost.ravel() / max(least, 1.0), _by_output(problem.errors) / most_error, problem.errors.shape[:2], ()
    )


def _solve_worst(problem: Problem, most_bits: np.ndarray, scale: float) -> np.ndarray | None:
    """One variable more, the error of the worst output in units of `scale`, is minimised: every output's
    error is at most it."""
    sizes, errors = _by_output(problem.bits) / most_bits[:, None], _by_output(problem.errors) / scale
    cost = np.zeros(errors.shape[1] + 1)
    cost[-1] = 1.0
    return _milp(
        cost,
        np.pad(sizes, ((0, 0), (0, 1))),
        problem.errors.shape[:2],
        np.pad(errors, ((0, 0), (0, 1)), constant_values=-1.0),
    )


def _by_output(values: np.ndarray) -> np.ndarray:
    """[layers, schemes, n] -> [n, layers * schemes]: one row for each constraint."""
    return values.reshape(-1, values.shape[2]).T


def _milp(
    cost: np.ndarray, at_most_one: np.ndarray, shape: tuple[int, int], at_most_zero: np.ndarray | tuple[()]
) -> np.ndarray | None:
    """Minimise `cost` over one choice per layer, rows `at_most_one` <= 1 and `at_most_zero` <= 0; variables
    past layers * schemes are >= 0."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, kron

    layers, schemes = shape
    if not layers:  # scipy refuses a problem without variables
        return np.zeros(0, dtype=np.int64)
    extra = len(cost) - layers * schemes
    one_each = csr_array(kron(np.eye(layers), np.ones((1, schemes))))
    one_each.resize((layers, len(cost)))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(at_most_one, -np.inf, 1 - MARGIN)]
    if len(at_most_zero):
        constraints.append(LinearConstraint(at_most_zero, -np.inf, 0))
    whole = np.append(np.ones(layers * schemes), np.zeros(extra))
    bounds = Bounds(0, np.append(np.ones(layers * schemes), np.full(extra, np.inf)))
    answer = milp(
        cost, integrality=whole, bounds=bounds, constraints=constraints, options={"mip_rel_gap": 0.0}
    )
    return None if answer.x is None else answer.x[: layers * schemes].reshape(shape).argmax(axis=1)
