"""A search: the same seed gives the same trials, wherever it was stopped; constraints steer it; whatever
fails does not end it."""

import itertools
import json
import sqlite3

import optuna
import pytest

from cidermill.models.errors import UserError
from cidermill.pipeline.study.constraints import parse_constraints
from cidermill.pipeline.study.plan import StudyPlan, Subject
from cidermill.pipeline.study.presets import parse_recipes
from cidermill.pipeline.study.search import STORAGE, search, search_space

TRIALS = 14


@pytest.fixture
def plan(tmp_path):
    def make(trials=TRIALS, **options):
        (tmp_path / "s").mkdir(exist_ok=True)
        return StudyPlan((Subject(tmp_path / "net.pt2"),), tmp_path / "s", trials=trials, **options)

    return make


@pytest.fixture
def answers(journals):
    """recipe -> a row: more bits are larger and better; every recipe with int3 fails."""

    def answer(recipe):
        number = sum(map(ord, recipe))
        row = (
            journals.failed(0, recipe=recipe)
            if "int3" in recipe
            else journals.row(
                0, recipe=recipe, size_bytes=1_000_000 + 100_000 * (number % 97), psnr_db=10.0 + number % 53
            )
        )
        return journals.records([row])[0]

    return answer


class Killed(BaseException):
    pass


def run(plan, answers, asked, stop_after=None, space=None):
    """Search with known answers; -> recipes in the order in which they were asked for. stop_after: rows after
    which the process "dies"."""

    def told(recipes):
        rows = []
        for recipe in recipes:
            if stop_after is not None and len(asked) >= stop_after:
                raise Killed
            asked.append(recipe)
            rows.append(answers(recipe))
        return rows

    search(plan, space or search_space(None), told, {"of": "test"})
    return asked


def test_every_proposal_is_a_recipe():
    space = search_space(None)
    names = list(space.choices)
    for values in itertools.product(*space.choices.values()):
        recipe = space.recipe_of(dict(zip(names, values)))
        assert parse_recipes(recipe)[0].name == recipe


def test_the_seed_decides(plan, answers, tmp_path):
    first = run(plan(), answers, [])
    (tmp_path / "s" / STORAGE).unlink()
    assert run(plan(), answers, []) == first and len(first) == TRIALS and len(set(first)) > 8
    (tmp_path / "s" / STORAGE).unlink()
    assert run(plan(seed=1), answers, []) != first


@pytest.mark.parametrize("stops", [(0,), (3,), (4,), (9, 10), (2, 5, 13)])
@pytest.mark.parametrize("damage", ["none", "a line cut off", "a lock left", "the storage lost"])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not(plan, answers, tmp_path, stops, damage):
    undisturbed = run(plan(), answers, [])
    path = tmp_path / "s" / STORAGE
    path.unlink()
    for stop in stops:
        with pytest.raises(Killed):
            run(plan(), answers, [], stop)
        if damage == "a line cut off":
            path.write_bytes(path.read_bytes()[:-7])
        elif damage == "a lock left":
            path.with_name(f"{STORAGE}.lock").symlink_to(path)
        elif damage == "the storage lost":
            path.unlink()
    assert run(plan(), answers, []) == undisturbed
    stored = optuna.load_study(study_name=None, storage=storage_of(path))
    assert [trial.user_attrs["recipe"] for trial in stored.trials] == undisturbed
    assert {trial.state.name for trial in stored.trials} == {"COMPLETE"}


def storage_of(path):
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def test_more_trials_go_on_as_if_they_had_been_asked_for_at_once(plan, answers, tmp_path):
    """6 is one batch and a half."""
    at_once = run(plan(), answers, [])
    (tmp_path / "s" / STORAGE).unlink()
    run(plan(6), answers, [])
    assert run(plan(), answers, []) == at_once


def test_constraints_steer(plan, answers, tmp_path):
    """Of 60 trials, more keep a constraint that the search knows of than one that it does not."""

    def kept(**options):
        recipes = run(plan(60, seed=3, **options), answers, [])
        (tmp_path / "s" / STORAGE).unlink()
        return sum((row.size_bytes or 1e9) <= 3_000_000 for row in map(answers, recipes))

    assert kept(constraints=parse_constraints("size<=3MB")) > kept() + 5


def test_a_storage_of_other_searches_is_shared(plan, answers, tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    first = run(plan(6, storage=url), answers, [])
    search(
        plan(6, storage=url, seed=5),
        search_space(None),
        lambda recipes: [answers(recipe) for recipe in recipes],
        {"of": "another"},
    )
    assert run(plan(6, storage=url), answers, []) == first
    assert sqlite3.connect(tmp_path / "x.db").execute("select count(*) from trials").fetchone() == (12,)


def test_a_storage_that_breaks_on_the_way_is_one_message(plan, answers, tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"

    def told(recipes):
        sqlite3.connect(tmp_path / "x.db").execute("drop table trials")
        return [answers(recipe) for recipe in recipes]

    with pytest.raises(UserError, match="--storage sqlite:.*no such table"):
        search(plan(6, storage=url), search_space(None), told, {"of": "test"})


# Through the command line

FEW = "int8,int4,palettize4,palettize6,prune50"


@pytest.fixture(scope="module")
def found(study, tiny, tmp_path_factory):
    """A search with two workers, one with one worker and a database, and what they printed."""
    folder = tmp_path_factory.mktemp("found")
    outputs = []
    for name, *options in (
        ("two", "--workers", 2),
        ("one", "--workers", 1, "--storage", f"sqlite:///{folder}/x.db"),
    ):
        result = study(
            tiny / "net.pt2",
            "--trials",
            9,
            "--seed",
            4,
            "--constraint",
            "psnr>=20",
            "--out",
            folder / name,
            *options,
        )
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    return folder, outputs


def test_workers_and_storage_make_no_difference(found):
    folder, _ = found
    assert (folder / "one" / "study.csv").read_bytes() == (folder / "two" / "study.csv").read_bytes()
    assert not (folder / "one" / STORAGE).exists()


def test_optuna_is_silent(found):
    for output in found[1]:
        assert "Warning" not in output and "optuna" not in output.lower().replace("optuna.journal", ""), (
            output
        )


def test_trials_are_run_once_and_numbered_in_the_order_of_the_proposals(found, rows_of):
    folder, _ = found
    rows = rows_of(folder / "two")
    stored = optuna.load_study(study_name=None, storage=storage_of(folder / "two" / STORAGE))
    asked = [trial.user_attrs["recipe"] for trial in stored.trials]
    assert len(asked) == 9
    assert [row["recipe"] for row in sorted(rows, key=lambda row: row["trial"])] == list(dict.fromkeys(asked))


@pytest.mark.parametrize("kept", [1, 3, 6])
def test_a_search_cut_short_ends_the_same(found, study, tiny, tmp_path, kept):
    """The journal up to some row, in the order of an unlucky batch; Optuna's up to as many batches."""
    folder, _ = found
    out = tmp_path / "two"
    out.mkdir()
    lines = (folder / "two" / "study.jsonl").read_text().splitlines(keepends=True)
    out.joinpath("study.jsonl").write_text("".join([lines[0], *reversed(lines[1:][:kept])]))
    arguments = [
        tiny / "net.pt2",
        "--trials",
        9,
        "--seed",
        4,
        "--constraint",
        "psnr>=20",
        "--out",
        out,
        "--quiet",
    ]
    assert study(*arguments).exit_code == 0
    assert (out / "study.csv").read_bytes() == (folder / "two" / "study.csv").read_bytes()


def test_trials_that_fail_do_not_end_it_and_a_list_bounds_it(study, tiny, rows_of, tmp_path):
    arguments = [
        tiny / "net.pt2",
        "--trials",
        12,
        "--recipes",
        FEW,
        "--eval",
        "study_evals:raises_on_int4",
        "--out",
        tmp_path / "s",
    ]
    result = study(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "s")
    assert {row["recipe"] for row in rows} <= set(FEW.split(",")) and len(rows) == len(
        {row["recipe"] for row in rows}
    ) >= 4
    assert {row["recipe"] for row in rows if row["state"] == "failed"} == {"int4"}
    assert len(json.loads(result.stdout)["trials"]) == len(rows)


def test_what_cannot_be_met_is_said_with_how_far(study, tiny, tmp_path):
    result = study(
        tiny / "net.pt2",
        "--trials",
        3,
        "--recipes",
        FEW,
        "--constraint",
        "psnr>=200",
        "--out",
        tmp_path / "s",
    )
    assert (
        result.exit_code == 1
        and "psnr>=200 cannot be met: the nearest is" in result.stdout
        and "too little" in result.stdout
    )


def test_another_seed_is_another_search(found, study, tiny):
    result = study(
        tiny / "net.pt2", "--trials", 9, "--seed", 5, "--constraint", "psnr>=20", "--out", found[0] / "two"
    )
    assert result.exit_code == 2 and "its search" in result.stderr
