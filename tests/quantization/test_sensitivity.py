"""Sensitivities against compressing one layer and running the whole program."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.samples import synthetic
from cidermill.models.source import Source, TensorSpec
from cidermill.quantization.compress import compress, decompressed
from cidermill.quantization.recipe import parse_recipe
from cidermill.quantization.sensitivity import measure
from cidermill.quantization.sensitivity_table import MeasuredOn, fits, read_table, write_table


class Branches(torch.nn.Module):
    """Two outputs, a skip connection, and a weight that is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = (torch.nn.Linear(48, 48) for _ in range(3))

    def forward(self, x):
        hidden = x + torch.relu(self.first(x))
        again = self.shared(torch.relu(self.shared(hidden)))
        return self.last(again), again + hidden


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    spec = TensorSpec("x", (1, 48), "float32")
    source = Source("branches", "module", "0", Branches().eval(), (spec,))
    return capture(source, synthetic((spec,), 3))


SCHEMES = {text: parse_recipe(text) for text in ("int8", "int4", "palettize2", "float16")}


@pytest.fixture(scope="module")
def table(captured):
    return measure(captured, SCHEMES, MeasuredOn("model", "samples"))


@pytest.mark.parametrize("scheme", ["int8", "int4", "palettize2"])
def test_one_layer_alone_gives_the_same_error(captured, table, scheme):
    wanted = evaluate(captured.program, captured)
    for layer in captured.layers:
        alone = decompressed(compress(captured, parse_recipe(f"float16; {layer.name}={scheme}")))
        answers = evaluate(alone, captured)
        for output, found in zip(table.outputs, table.errors[scheme][layer.name]):
            reference = np.stack([sample[output] for sample in wanted]).astype(float)
            mine = np.stack([sample[output] for sample in answers])
            assert found == pytest.approx(
                np.square(mine - reference).mean() / np.abs(reference).max() ** 2, rel=1e-4, abs=1e-13
            )
    assert any(error > 1e-8 for error in table.errors[scheme]["first.weight"])


def test_float16_leaves_a_layer_alone(table):
    assert set(table.errors["float16"]) == {"first.weight", "shared.weight", "last.weight"}
    assert not np.any(list(table.errors["float16"].values()))


def test_what_is_known_is_not_measured_again(captured, table, tmp_path):
    write_table(table, tmp_path / "t.json")
    read = read_table(tmp_path / "t.json")
    assert read == table and fits(read, captured, MeasuredOn("model", "samples")) == ""
    told = []
    more = measure(
        captured,
        {**SCHEMES, "int3": parse_recipe("palettize3")},
        MeasuredOn("model", "samples"),
        read,
        told.append,
    )
    assert {line.split()[0] for line in told} == {"int3"} and {**more.errors, "int3": 0} == {
        **table.errors,
        "int3": 0,
    }


def test_a_table_of_something_else_is_noticed(captured, table):
    assert fits(table, captured, MeasuredOn("other", "samples")) == "another model"
    assert fits(table, captured, MeasuredOn("model", "other")) == "other samples"
    renamed = replace(table, errors={"int8": {"x": [0.0, 0.0]}})
    assert fits(renamed, captured, MeasuredOn("model", "samples")) == "other layers"
    assert (
        fits(replace(table, outputs=("x", "y")), captured, MeasuredOn("model", "samples")) == "another model"
    )


UNEVEN = (
    '{"schema": "cidermill.sensitivity/1", "source": "", "samples": "", "outputs": ["a"], "errors": {"int8":'
    ' {"w": [1, 2]}}}'
)


WRONG = [
    UNEVEN.replace("[1, 2]", f"[{error}]") for error in ("NaN", "Infinity", "-1", "1" + 400 * "0", '"a"')
]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "x"}', "null", UNEVEN, "[" * 100_000, *WRONG])
def test_files_that_are_no_table(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match="no table of sensitivities"):
        read_table(tmp_path / "t.json")


def test_a_missing_table(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.json")
