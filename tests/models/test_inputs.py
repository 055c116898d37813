"""--input texts and their check against the model's own inputs."""

import subprocess
import sys

import pytest

from cidermill.models.errors import UserError
from cidermill.models.inputs import InputSpec, override, parse_input, parse_inputs, spec_text
from cidermill.models.source import TensorSpec


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x:1x3x224x224", InputSpec("x", (1, 3, 224, 224))),
        ("ids:1x128:int32", InputSpec("ids", (1, 128), "int32")),
        ("ids:1x128:int64", InputSpec("ids", (1, 128), "int32")),
        (" mask_2:7:bool ", InputSpec("mask_2", (7,), "bool")),
    ],
)
def test_parse(text, expected):
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("1x3x224x224", "--input '1x3x224x224' is not NAME:SHAPE or NAME:SHAPE:DTYPE."),
        ("x:1:float32:y", "is not NAME:SHAPE"),
        ("2x:1x3", "'2x' is not a name"),
        ("lambda:1x3", "'lambda' is a word of the Python language"),
        ("self:1x3", "'self' is a word of the Python language"),
        ("x:1x0x3", "the shape '1x0x3' is not whole numbers from 1 joined by x"),
        ("x:1x-3", "the shape '1x-3' is not"),
        ("x:", "the shape '' is not"),
        ("x:1x3:complex64", "the dtype 'complex64' is not one of float32, float16, int32, bool"),
        ("x:99999x99999", "has 9999800001 elements; an input holds fewer than"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(UserError) as error:
        parse_input(text)
    assert message in error.value.message and error.value.hint


def test_a_name_may_be_given_once():
    with pytest.raises(UserError, match="--input names x twice"):
        parse_inputs(("x:1", "y:1", "x:2"))


OWN = (TensorSpec("ids", (1, 128), "int32"), TensorSpec("mask", (1, 128), "int32"))


def test_override_changes_shapes_by_name_and_keeps_the_order():
    assert override("Bert", OWN, (InputSpec("mask", (1, 5)),)) == (
        OWN[0],
        TensorSpec("mask", (1, 5), "int32"),
    )


@pytest.mark.parametrize(
    "given, message",
    [
        (
            InputSpec("tokens", (1, 5)),
            "Bert has no input 'tokens'. Its inputs are: ids (1x128 int32), mask (1x128 int32).",
        ),
        (InputSpec("ids", (1, 1, 5)), "Input 'ids' of Bert has 2 dimensions, but --input gives 3: 1x1x5."),
        (InputSpec("ids", (1, 5), "float32"), "Input 'ids' of Bert is int32, but --input says float32."),
    ],
)
def test_override_refuses(given, message):
    with pytest.raises(UserError) as error:
        override("Bert", OWN, (given,))
    assert error.value.message == message and error.value.hint


def test_a_spec_prints_as_it_is_given():
    assert parse_input(spec_text(OWN[0])) == InputSpec("ids", (1, 128), "int32")


def test_the_parser_imports_neither_torch_nor_numpy():
    imports = "import sys, cidermill.models.inputs, cidermill.models.load, cidermill.models.errors"
    code = f"{imports}; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
