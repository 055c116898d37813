"""What may be tried: the presets hold what they promise, lists and files are read, and what is no recipe is
said in words."""

import json

import pytest
from click.testing import CliRunner

from cidermill.models.errors import UserError
from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.study.presets import PRESETS, parse_recipes

COUNTS = {"quick": 8, "standard": 24, "thorough": 60}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_preset_holds_as_many_recipes_as_it_says_and_core_ml_holds_each(name, count, tmp_path):
    recipes = parse_recipes(name)
    assert len({recipe.name for recipe in recipes}) == len(PRESETS[name]) == count
    for recipe in recipes:
        options = {"quant": recipe.name, "deployment_target": "iOS18"}
        assert plan_from(tmp_path / "net.pt", options).recipe == recipe


def test_each_preset_begins_with_the_smaller_one():
    assert PRESETS["thorough"][:24] == PRESETS["standard"] and PRESETS["standard"][:8] == PRESETS["quick"]


def test_the_command_lists_them():
    result = CliRunner().invoke(main, ["study", "--list-recipes", "--json"])
    assert (
        result.exit_code == 0
        and {name: len(recipes) for name, recipes in json.loads(result.stdout).items()} == COUNTS
    )


LISTS = {
    "list": ("int8, int4,int8", None),
    "recipes.txt": ("# what we ship\nint8  # as before\n\nint4\n", "recipes.txt"),
    "recipes.toml": ('recipes = ["int8", "int4"]\n', "recipes.toml"),
}


@pytest.mark.parametrize(("text", "file"), LISTS.values(), ids=LISTS)
def test_lists_and_files(text, file, tmp_path):
    if file:
        (tmp_path / file).write_text(text)
    assert [recipe.name for recipe in parse_recipes(str(tmp_path / file) if file else text)] == [
        "int8",
        "int4",
    ]


BAD = {
    "an unknown recipe": ("int8,int9", None, "int9"),
    "a preset misspelt": ("standart", None, "Did you mean the preset standard?"),
    "nothing": (",", None, "holds no recipe"),
    "a file that is not there": ("none.txt", None, "No such file"),
    "an empty file": ("r.txt", b"# nothing\n", "holds no recipe"),
    "a bad line": ("r.txt", b"int8\nhalf\n", "half"),
    "no text": ("r.txt", b"\xff\xfe\x00", "cannot be read"),
    "no TOML": ("r.toml", b"recipes = [", "is not TOML"),
    "another key": ("r.toml", b'recipe = ["int8"]', "holds recipe; allowed is one list called recipes"),
    "numbers": ("r.toml", b"recipes = [8]", "one list called recipes"),
}


@pytest.mark.parametrize(("text", "content", "said"), BAD.values(), ids=BAD)
def test_what_is_no_recipe_is_said(text, content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / text).write_bytes(content)
    with pytest.raises(UserError, match="--recipes") as error:
        parse_recipes(text)
    assert said in str(error.value)
