"""What a model's card says of author and licence; an odd card says nothing."""

import pytest

from cidermill.models.model_card import read_card

CARDS = {
    "a licence": ("---\nlicense: apache-2.0\ntags:\n- vision\n---\n# Net", {"license": "apache-2.0"}),
    "an author": ("---\nauthor: Jane Doe\nlicense: mit\n---\n", {"author": "Jane Doe", "license": "mit"}),
    "several": ("---\nlicense: [mit, apache-2.0]\n---\n", {"license": "mit, apache-2.0"}),
    "another": ("---\nlicense: other\nlicense_name: llama3\n---\n", {"license": "llama3"}),
    "another without a name": ("---\nlicense: other\n---\n", {"license": "other"}),
    "line ends of Windows": ("---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
    "a mark in front": ("\ufeff---\nlicense: mit\n---\n", {"license": "mit"}),
    "a number for a name": ("---\nlicense: 2020-99-99\n---\n", {"license": "2020-99-99"}),
    "nothing": ("---\nlicense:\nauthor: null\n---\n", {}),
    "a table": ("---\nlicense: {name: mit}\n---\n", {}),
    "no fields": ("# Net\nlicense: mit\n", {}),
    "no end": ("---\nlicense: mit\n", {}),
    "a list": ("---\n- license\n---\n", {}),
    "no YAML": ("---\nlicense: [mit\n---\n", {}),
    "a tag of Python": ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", {}),
    "depth": ("---\nlicense: " + "[" * 5000 + "\n---\n", {}),
    "merges of merges": (
        "---\na: &a {x: 1}\n"
        + "".join(f"{b}: &{b} {{<<: [{', '.join(9 * ['*' + a])}]}}\n" for a, b in zip("abcdefgh", "bcdefghi"))
        + "license: mit\n---\n",
        {"license": "mit"},
    ),
    "steering characters": ('---\nlicense: "a\\u001b[2J"\n---\n', {}),
    "half a character": ('---\nlicense: "\\ud800"\n---\n', {}),
    "nothing at all": ("", {}),
}


@pytest.mark.parametrize(("text", "said"), CARDS.values(), ids=CARDS)
def test_what_a_card_says(tmp_path, text, said):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_card(tmp_path) == said


def test_no_card_and_bytes_that_are_none(tmp_path):
    assert read_card(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe---\nlicense: mit")
    assert read_card(tmp_path) == {}
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert read_card(tmp_path) == {}
