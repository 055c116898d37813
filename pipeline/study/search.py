"""A search instead of a grid: Optuna proposes recipes by what came of the earlier ones, for several objectives and under constraints.

Proposals depend on the seed, the size of a batch and the results told so far, and on nothing else: a search that was killed goes on as if it had not.
"""
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from .constraints import Constraint, violation
from .results import Row, error_of, first_latency_ms

STORAGE = "optuna.journal"
NAME = "cidermill"
SPACE = {
    "kind": ("float16", "int", "palettize"),
    "int bits": (8, 6, 5, 4, 3, 2),
    "scales": ("per-tensor", "per-channel", "block64", "block32", "block16"),
    "palette bits": (8, 6, 4, 3, 2, 1),
    "tables": ("", "group32", "group16", "group4"),
    "prune": (0, 20, 30, 40, 50, 60, 75),
}
UNKNOWN_MS = 1e9  # where no latency is known, it is so for every trial


@dataclass(frozen=True)
class Search:
    """choices: what Optuna may vary, name -> values; recipe_of: a choice of them -> a recipe's text."""

    choices: dict[str, tuple]
    recipe_of: Callable[[dict], str]


def search_space(recipes: Sequence[Any] | None) -> Search:
    """Over a list of recipes, or over bits, scales, tables and pruning."""
    if recipes:
        return Search({"recipe": tuple(recipe.name for recipe in recipes)}, lambda choice: choice["recipe"])
    return Search(SPACE, _recipe)


def _recipe(choice: dict) -> str:
    """{"kind": "int", "int bits": 4, "scales": "block32", "prune": 50, ...} -> "prune50+int4"."""
    from ...quantization.recipe import parse_recipe

    values = {"float16": "", "int": f"int{choice['int bits']}:{choice['scales']}",
              "palettize": ":".join(filter(None, (f"palettize{choice['palette bits']}", choice["tables"])))}[choice["kind"]]
    prune = f"prune{choice['prune']}" if choice["prune"] else ""
    return parse_recipe("+".join(filter(None, (prune, values))) or "float16").name


def proposals(
    plan: Any, search: Search, told: Callable[[list[str]], list[Row]], constraints: Sequence[Constraint], goal: str
) -> Iterator[tuple[int, str]]:
    """Ask, run and tell until plan.trials are done. told(recipes) -> their rows, from the journal or run now.

    -> (number, recipe) of each as it is asked."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _open(plan.storage, plan.out)
    _forget_unfinished(study)
    done = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
    while done < plan.trials:
        asked = []
        for place in range(min(plan.batch, plan.trials - done)):
            study.sampler = _sampler(plan.seed, done + place, plan.batch)
            distributions = {name: optuna.distributions.CategoricalDistribution(values) for name, values in search.choices.items()}
            asked.append(study.ask(distributions))
        recipes = [search.recipe_of(trial.params) for trial in asked]
        yield from enumerate(recipes, done)
        for trial, row in zip(asked, told(recipes)):
            broken = [min(violation(one, row), UNKNOWN_MS) for one in constraints]
            trial.set_user_attr("violations", [*broken, 0.0 if row["verdict"] == "pass" else 1.0])
            trial.set_user_attr("recipe", row["recipe"])
            study.tell(trial, _values(row, goal))
        done += len(asked)


def _values(row: Row, goal: str) -> tuple[float, float, float]:
    """Size, error and latency, all to be minimized; a trial that failed is worse than any that did not."""
    if row["state"] != "done":
        return UNKNOWN_MS * 1e3, UNKNOWN_MS, UNKNOWN_MS
    error = error_of(row, row.get("metric") is not None, goal)
    return float(row["size_bytes"]), max(-UNKNOWN_MS, min(error, UNKNOWN_MS)), min(first_latency_ms(row), UNKNOWN_MS)


def _sampler(seed: int, number: int, batch: int) -> Any:
    """A sampler of its own for each proposal: its random numbers do not depend on whether the process has been running since the first one."""
    import optuna
    from optuna.samplers import TPESampler

    def violations(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
        return trial.user_attrs.get("violations", (1.0,))

    own = random.Random(f"{seed} {number}").getrandbits(32)
    return TPESampler(seed=own, n_startup_trials=max(8, batch), constraints_func=violations, constant_liar=True)


def _open(storage: str | None, folder: Path) -> Any:
    """Optuna's study: in a journal beside ours, or in the database at a URL. Raises UserError where it cannot be opened."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        held = storage or JournalStorage(JournalFileBackend(str(folder / STORAGE)))
        return optuna.create_study(study_name=f"{NAME} {folder.resolve().name}", storage=held, directions=["minimize"] * 3, load_if_exists=True)
    except Exception as error:  # sqlalchemy's, a missing driver's, Optuna's own
        reason = str(error).strip().splitlines()[0][:200]
        hint = "Give a URL that Optuna takes, such as sqlite:///study.db."
        raise UserError(f"--storage {storage}: {type(error).__name__}: {reason}", hint) from error


def _forget_unfinished(study: Any) -> None:
    """What was asked and never told, as the process was killed, is asked again."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
