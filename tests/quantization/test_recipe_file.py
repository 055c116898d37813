import pytest

from cidermill.models.errors import UserError
from cidermill.quantization.recipe_file import load_recipe

FULL = """
recipe = "int4"
[layers]
"lm_head*" = "int8"
[types]
embedding = "palettize8"
convolution = "float16"
"""


def test_a_file_says_what_a_text_says(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(FULL)
    assert (
        load_recipe(str(path)).name
        == "int4; type:embedding=palettize8; type:convolution=float16; lm_head*=int8"
    )
    path.write_text('[layers]\nhead = "int8"\n')
    assert load_recipe(f" {path} ").name == "float16; head=int8"
    assert load_recipe("int4:block64").name == "int4:block64"


@pytest.mark.parametrize(
    "text, message",
    [
        ('recipe = "int4\n', r"r.toml is no TOML: .*\(at line 1, column 15\)"),
        ('recipe = "int9"', r"r.toml: recipe: integers of 9 bits are not possible"),
        ('recpe = "int8"', "unknown key 'recpe'; allowed are recipe, types, layers; did you mean recipe?"),
        ("recipe = 8", "recipe must be a recipe in quotes, not 8"),
        (
            '[layers]\n"a*" = "int8:blok3"',
            r"r.toml: layers.'a\*': recipe word 'int8:blok3': unknown option 'blok3'",
        ),
        (
            '[layers]\na.b = "int8"',
            "layers.'a' must be a recipe in quotes, not {'b': 'int8'}; names with dots need quotes",
        ),
        (
            '[types]\nembeding = "int8"',
            "types.'embeding': unknown kind of layer 'type:embeding'; .*did you mean type:embedding?",
        ),
        ('layers = "int8"', "layers must be a table, not 'int8'"),
        ('recipe = "int8; a=int4"', "r.toml: recipe: .*int8; a=int4"),
        ('recipe = "float32"\n[layers]\na = "int8"', "float32 keeps every weight as it is"),
    ],
)
def test_refused(tmp_path, text, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_recipe(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(
        UserError, match="recipe file .*none.toml does not exist.\nGive a .toml file, or a recipe as text"
    ):
        load_recipe(str(tmp_path / "none.toml"))


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(str(tmp_path / "b.toml"))
