"""models/capture.py: what the captured program promises to every later stage."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.forward import NamedModule
from cidermill.models.source import Samples, Source, TensorSpec

aten = torch.ops.aten


def source_of(module, **arrays):
    specs = tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
    return Source(Path("model.pt"), "module", "0", module.eval(), specs), Samples("synthetic", (arrays,), 0)


def captured(module, **arrays):
    return capture(*source_of(module, **arrays))


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def operators(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.register_buffer("positions", torch.arange(16))

    def forward(self, input_ids, attention_mask):
        hidden = (
            self.embed(input_ids) * torch.sin(self.positions[: input_ids.shape[1]].float())[None, :, None]
        )
        return {"hidden": hidden, "pooled": (hidden * attention_mask[..., None]).sum(1)}


def test_names_and_integer_inputs():
    result = captured(
        Tokens(), input_ids=np.arange(6, dtype=np.int32)[None], attention_mask=np.ones((1, 6), np.int32)
    )
    assert [spec.name for spec in result.outputs] == ["hidden", "pooled"]
    placeholders = {
        node.name: node.meta["val"].dtype for node in result.program.graph.nodes if node.op == "placeholder"
    }
    assert placeholders["input_ids"] == placeholders["attention_mask"] == torch.int32
    assert "embed_weight" in placeholders


def test_the_program_computes_what_the_source_computes():
    result = captured(
        Tokens(),
        input_ids=np.arange(6, dtype=np.int32)[None],
        attention_mask=np.array([[1, 1, 0, 1, 1, 0]], np.int32),
    )
    for name, value in evaluate(result.program, result)[0].items():
        np.testing.assert_allclose(value, result.reference[0][name], atol=1e-6)


def test_what_no_input_decides_is_folded():
    result = captured(
        Tokens(), input_ids=np.arange(6, dtype=np.int32)[None], attention_mask=np.ones((1, 6), np.int32)
    )
    assert aten.sin.default not in operators(result.program)
    assert "positions" not in result.program.state_dict  # only its folded sine is needed
    assert "embed.weight" in result.program.state_dict


def test_weight_norm_becomes_one_weight():
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 8, 3), name="weight", dim=2)
    result = captured(conv, input=normal(1, 4, 16))
    assert operators(result.program) == [aten.convolution.default]
    np.testing.assert_allclose(
        evaluate(result.program, result)[0]["output"], result.reference[0]["output"], atol=1e-5
    )


@pytest.mark.parametrize(
    "conv",
    [
        torch.nn.Conv2d(6, 8, 3, bias=False),
        torch.nn.Conv2d(6, 8, 3, groups=2),
        torch.nn.ConvTranspose2d(6, 8, 3),
        torch.nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False),
    ],
    ids=["plain", "grouped", "transposed", "transposed grouped"],
)
def test_batch_norm_is_folded_into_the_convolution(conv):
    norm = torch.nn.BatchNorm2d(8)
    with torch.no_grad():
        for tensor, low in (
            (norm.weight, 0.5),
            (norm.bias, -1),
            (norm.running_mean, -1),
            (norm.running_var, 0.5),
        ):
            tensor.uniform_(low, 2)
    result = captured(torch.nn.Sequential(conv, norm), input=normal(1, 6, 9, 9))
    assert operators(result.program) == [aten.convolution.default]
    np.testing.assert_allclose(
        evaluate(result.program, result)[0]["output"], result.reference[0]["output"], atol=1e-5
    )


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_a_weight_becomes_linear_with_the_weight_turned(bias):
    class Conv1D(torch.nn.Module):
        """GPT-2's: weight [in, out]."""

        def __init__(self):
            super().__init__()
            self.weight, self.bias = (
                torch.nn.Parameter(torch.randn(6, 10)),
                torch.nn.Parameter(torch.randn(10)),
            )

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weight) if bias else x @ self.weight

    result = captured(Conv1D(), x=normal(3, 6))
    assert operators(result.program) == [aten.linear.default]
    assert result.program.state_dict["weight"].shape == (10, 6)
    np.testing.assert_allclose(
        evaluate(result.program, result)[0]["output"], result.reference[0]["output"], atol=1e-5
    )


def test_a_decomposed_linear_becomes_linear_again():
    program = torch.export.export(torch.nn.Linear(6, 10).eval(), (torch.ones(3, 6),)).run_decompositions()
    source = Source(
        Path("m.pt2"), "exported-program", "0", None, (TensorSpec("input", (3, 6), "float32"),), program
    )
    result = capture(source, Samples("synthetic", ({"input": normal(3, 6)},), 0))
    assert operators(result.program) == [aten.linear.default]
    np.testing.assert_allclose(
        evaluate(result.program, result)[0]["output"], result.reference[0]["output"], atol=1e-5
    )


def test_a_matrix_with_two_readers_is_not_turned():
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 6))

        def forward(self, x):
            return (x @ self.weight) @ self.weight.t()

    result = captured(Shared(), x=normal(3, 6))
    np.testing.assert_allclose(
        evaluate(result.program, result)[0]["output"], result.reference[0]["output"], atol=1e-4
    )


def test_batch_norm_stays_where_the_convolution_has_another_reader():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

        def forward(self, x):
            raw = self.conv(x)
            return raw, self.norm(raw)

    result = captured(Twice(), x=normal(1, 3, 8, 8))
    assert aten._native_batch_norm_legit_no_training.default in operators(result.program)
    for name, value in evaluate(result.program, result)[0].items():
        np.testing.assert_allclose(value, result.reference[0][name], atol=1e-5)


class Strided(torch.nn.Module):
    def __init__(self, shape, strides, offset=0, transposed=False):
        super().__init__()
        self.view, self.transposed = (shape, strides, offset), transposed

    def forward(self, x):
        x = x + 1
        return (x.transpose(1, 2) if self.transposed else x).as_strided(*self.view)


@pytest.mark.parametrize(
    "module",
    [
        Strided((4, 6), (6, 1)),
        Strided((5, 3), (2, 1), 4),
        Strided((2, 6, 2), (12, 2, 1), transposed=True),
        Strided((6, 4), (1, 6)),
    ],
    ids=["reshape", "overlapping windows", "of a transposed tensor", "transpose"],
)
def test_as_strided_is_spelled_out(module):
    result = captured(module, x=normal(1, 4, 6))
    assert aten.as_strided.default not in operators(result.program)
    np.testing.assert_array_equal(
        evaluate(result.program, result)[0]["output"], result.reference[0]["output"]
    )


def test_data_dependent_control_flow_names_module_and_line():
    class Gate(torch.nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def forward(self, x):
            return self.gate(x * 2)

    with pytest.raises(UserError) as caught:
        captured(Outer(), x=normal(1, 4))
    line = next(
        i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "if x.sum() > 0:" in text
    )
    assert f"{Path(__file__).name}:{line}" in caught.value.message
    assert "gate (Gate)" in caught.value.message
    assert "torch.where" in caught.value.hint


def test_inputs_that_a_model_changes_in_place_stay_with_the_caller():
    model = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 2))
    given = {"input": normal(3, 4)}
    before = given["input"].copy()
    result = captured(model, **given)
    np.testing.assert_array_equal(given["input"], before)
    (answer,) = result.program.module()(torch.from_numpy(before))
    wanted = model(torch.from_numpy(before.copy())).detach()
    np.testing.assert_allclose(answer.detach(), wanted, rtol=1e-6)
    (warning,) = result.source.warnings
    assert warning.startswith(
        "The model changes its input input in place; an artifact leaves what it is given"
    )


def test_an_exported_program_with_keyword_inputs_and_a_flag():
    class Flagged(torch.nn.Module):
        def forward(self, x, scale=None, double=False):
            return x * (2 if double else 1)

    program = torch.export.export(Flagged(), (torch.ones(1, 3),), {"double": True})
    source = Source(
        Path("m.pt2"), "exported-program", "0", None, (TensorSpec("x", (1, 3), "float32"),), program
    )
    result = capture(source, Samples("synthetic", ({"x": normal(1, 3)},), 0))
    np.testing.assert_allclose(evaluate(result.program, result)[0]["output"], result.reference[0]["output"])


class MaskedDecoder(torch.nn.Module):
    """The causal mask is given without a word on what it is, as torch's own examples do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        self.decoder = torch.nn.TransformerDecoder(layer, 1)
        self.queries = torch.nn.Parameter(torch.randn(1, 6, 16))

    def forward(self, memory):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(6)
        return self.decoder(self.queries, memory, tgt_mask=mask)


def test_a_transformer_may_be_given_a_mask_without_a_word_on_what_it_is():
    result = captured(MaskedDecoder(), memory=normal(1, 5, 16))
    assert_same(result)


def test_transformers_mamba_is_captured_with_its_parallel_scan():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, use_cache=False))
    module = NamedModule(model, lambda inputs: model(**inputs).logits)
    result = captured(module, input_ids=(np.arange(64, dtype=np.int32) * 7 % 32)[None])
    assert len(result.program.graph.nodes) < 350  # a loop of 64 steps has 500 more
    assert_same(result)


def assert_same(result, tolerance=1e-5):
    """What the program computes of its samples is what the source computed."""
    for name, expected in result.reference[0].items():
        np.testing.assert_allclose(
            evaluate(result.program, result)[0][name], expected, atol=tolerance * np.abs(expected).max()
        )


def test_distributions_do_not_check_traced_parameters(monkeypatch):
    # torch._dynamo turns it off for good when it first compiles something
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)

    class Forecast(torch.nn.Module):
        def forward(self, x):
            return torch.distributions.Normal(x, x.exp()).log_prob(torch.ones(3))

    x = normal(3)
    expected = Forecast()(torch.from_numpy(x))
    np.testing.assert_allclose(captured(Forecast(), x=x).reference[0]["output"], expected.numpy())
    assert torch.distributions.Distribution._validate_args
