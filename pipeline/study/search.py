"""A search instead of a grid: Optuna proposes recipes by what came of the earlier ones, for several
objectives and under constraints.

Proposals depend on the seed, the size of a batch and the rows of earlier batches, and on nothing else. So a
search that was killed is asked again from its last whole batch on, and goes on as if it had not been.
Optuna's storage holds the finished batches, for that and for Optuna's own tools.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.digest import digest_json
from ...models.errors import UserError
from .constraints import violation
from .records import StudyRow
from .results import error_of, first_latency_ms, measured_by_metric, size_of

STORAGE = "optuna.journal"
STORAGE_HINT = "Give a URL that Optuna takes, such as sqlite:///study.db."
SPACE = {
    "kind": ("float16", "int", "palettize"),
    "int bits": (8, 6, 5, 4, 3, 2),
    "scales": ("per-tensor", "per-channel", "block64", "block32", "block16"),
    "palette bits": (8, 6, 4, 3, 2, 1),
    "tables": ("", "group32", "group16", "group4"),
    "prune": (0, 20, 30, 40, 50, 60, 75),
}
UNKNOWN_MS = 1e9  # where no latency is known, it is so for every trial
STARTUP_TRIALS = 8  # at random, before there is something to learn from


@dataclass(frozen=True)
class Space:
    """choices: what Optuna may vary, name -> values; recipe_of: a choice of them -> a recipe's text."""

    choices: dict[str, tuple[Any, ...]]
    recipe_of: Callable[[dict[str, Any]], str]


def search_space(recipes: Sequence[Any] | None) -> Space:
    """Over a list of recipes, or over bits, scales, tables and pruning."""
    if recipes:
        return Space({"recipe": tuple(recipe.name for recipe in recipes)}, lambda choice: choice["recipe"])
    return Space(SPACE, _recipe)


def _recipe(choice: dict[str, Any]) -> str:
    """{"kind": "int", "int bits": 4, "scales": "block32", "prune": 50, ...} -> "prune50+int4"."""
    from ...quantization.recipe import parse_recipe

    values = {
        "float16": "",
        "int": f"int{choice['int bits']}:{choice['scales']}",
        "palettize": ":".join(filter(None, (f"palettize{choice['palette bits']}", choice["tables"]))),
    }[choice["kind"]]
    prune = f"prune{choice['prune']}" if choice["prune"] else ""
    return parse_recipe("+".join(filter(None, (prune, values))) or "float16").name


def search(
    plan: Any, space: Space, told: Callable[[list[str]], list[StudyRow]], identity: dict[str, Any]
) -> None:
    """Ask, run and tell, a batch at a time, until plan.trials are done. told(recipes) -> their rows, from the
    journal or run now.

    identity: what decides the search (JSON values). Raises UserError where the storage cannot be used.
    """
    import optuna

    with _silent(), _storage_errors(plan.storage):
        stored = _open(plan.storage, plan.out, identity)
        kept = stored.get_trials(deepcopy=False)
        study = optuna.create_study(directions=["minimize"] * 3)
    for first in range(0, plan.trials, plan.batch):
        count = min(plan.batch, plan.trials - first)
        earlier = kept[first : first + count]
        if len(earlier) == count:
            study.add_trials(earlier)
            told([space.recipe_of(trial.params) for trial in earlier])
            continue
        with _silent():
            asked = [
                _ask(study, space, plan.seed, number, plan.batch) for number in range(first, first + count)
            ]
        rows = told([space.recipe_of(trial.params) for trial in asked])
        with _silent(), _storage_errors(plan.storage):
            for trial, row in zip(asked, rows):
                _tell(study, trial, row, plan)
            stored.add_trials(study.get_trials(deepcopy=False)[first + len(earlier) :])


def check_storage(url: str) -> None:
    """Raises UserError where Optuna cannot open it."""
    import optuna

    with _silent(), _storage_errors(url):
        optuna.storages.get_storage(url)


def _ask(study: Any, space: Space, seed: int, number: int, batch: int) -> Any:
    """A sampler of its own for each proposal: its random numbers do not depend on whether the process has
    been running since the first one."""
    import optuna

    own = random.Random(f"{seed} {number}").getrandbits(32)
    study.sampler = optuna.samplers.TPESampler(
        seed=own, n_startup_trials=max(STARTUP_TRIALS, batch), constant_liar=True
    )
    return study.ask(
        {name: optuna.distributions.CategoricalDistribution(values) for name, values in space.choices.items()}
    )


def _tell(study: Any, trial: Any, row: StudyRow, plan: Any) -> None:
    for constraint in plan.constraints:
        trial.set_constraint(constraint.text, min(violation(constraint, row), UNKNOWN_MS))
    trial.set_constraint("verdict", 0.0 if row.passed else 1.0)
    trial.set_user_attr("recipe", row.recipe)
    study.tell(trial, _values(row, plan.goal))


def _values(row: StudyRow, goal: str) -> tuple[float, float, float]:
    """Size, error and latency, all to be minimized; a trial that failed is worse than any that did not."""
    if row.state != "done":
        return UNKNOWN_MS * 1e3, UNKNOWN_MS, UNKNOWN_MS
    error = error_of(row, measured_by_metric([row]), goal)
    return (
        size_of(row),
        max(-UNKNOWN_MS, min(error, UNKNOWN_MS)),
        min(first_latency_ms(row), UNKNOWN_MS),
    )


def _open(storage: str | None, folder: Path, identity: dict[str, Any]) -> Any:
    """Optuna's study: in a journal beside ours, or in the database at a URL, which may hold those of other
    folders and searches."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    digest = digest_json([str(folder.resolve()), identity])
    if storage is None:
        _mend(folder / STORAGE)
        storage = JournalStorage(JournalFileBackend(str(folder / STORAGE)))
    return optuna.create_study(
        study_name=f"{folder.resolve().name} {digest[:12]}",
        storage=storage,
        directions=["minimize"] * 3,
        load_if_exists=True,
    )


def _mend(path: Path) -> None:
    """What a kill has left: a line that was cut off, and the lock of a process that has gone; ours is on the
    whole folder."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink()
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


@contextmanager
def _silent() -> Iterator[None]:
    """Optuna speaks of its own experiments and studies; the user asked for none of that."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _storage_errors(url: str | None) -> Iterator[None]:
    """A database's errors are the user's to mend: sqlalchemy's, a missing driver's, Optuna's own."""
    try:
        yield
    except Exception as error:
        if url is None:
            raise
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = (str(first).strip().splitlines() or [""])[0][:200]
        raise UserError(f"--storage {url}: {type(first).__name__}: {reason}", STORAGE_HINT) from error
