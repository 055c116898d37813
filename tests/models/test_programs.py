"""Exported programs: any name, any input structure, dynamic shapes; no code of the file runs."""

import io
import json
import os
import zipfile

import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.inputs import InputSpec
from cidermill.models.load import load
from cidermill.models.open_sizes import fixed_sizes
from cidermill.models.samples import synthetic


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 2)

    def forward(self, ids, mask=None, *, scales=(), flag=True):
        hidden = self.head(self.table(ids.view(-1)))
        return {"logits": hidden * scales[0], "rest": (hidden.sum(), None)}


class Affine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)


def refusal(path, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, *args, **options)
    assert error.value.hint
    return str(error.value)


def save(program, path):
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture
def static(tmp_path):
    torch.manual_seed(0)
    model = Affine().eval()
    return save(torch.export.export(model, (torch.ones(3, 4),)), tmp_path / "model.pt"), model


def test_static(static, capfd):
    path, model = static
    source = load(path)
    x = torch.randn(3, 4)
    assert source.format == "exported-program" and source.program is not None
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.inputs] == [("x", (3, 4), "float32")]
    with torch.no_grad():
        assert torch.equal(source.module(x=x), model(x)) and torch.equal(source.program.module()(x), model(x))
    assert capfd.readouterr() == ("", "")


def test_static_shapes_are_fixed(static):
    message = refusal(static[0], (InputSpec("x", (5, 4)),))
    assert (
        "was exported with x (3x4 float32); dimension 0 cannot become 5." in message
        and "torch.export.Dim" in message
    )
    assert "has no input image. Its inputs are: x (3x4 float32)." in refusal(
        static[0], (InputSpec("image", (3, 4)),)
    )
    assert "has 2 dimensions, but --input gives 1: 3." in refusal(static[0], (InputSpec("x", (3,)),))
    assert "is float32, but --input says int32." in refusal(static[0], (InputSpec("x", (3, 4), "int32"),))


def test_dynamic_shapes_are_settled(tmp_path):
    model = Affine().eval()
    program = torch.export.export(
        model, (torch.ones(3, 4),), dynamic_shapes={"x": {0: torch.export.Dim("n", max=64)}}
    )
    path = save(program, tmp_path / "m")
    source = load(path)
    assert source.program is None and source.inputs[0].shape == (3, 4)
    source = load(path, (InputSpec("x", (5, 4)),))
    with torch.no_grad():
        exported = torch.export.export(source.module, (), {"x": torch.ones(5, 4)}, strict=False)
        assert torch.allclose(exported.module()(x=torch.ones(5, 4)), model(torch.ones(5, 4)))
    assert "layer.weight" in exported.state_dict
    assert "dimension 1 cannot become 9" in refusal(path, (InputSpec("x", (5, 9)),))


def test_a_size_beyond_the_exported_range_names_the_condition(tmp_path):
    size = torch.export.Dim("size", min=1, max=8)
    program = torch.export.export(
        torch.nn.Linear(4, 4), (torch.randn(2, 4),), dynamic_shapes={"input": {0: size}}
    )
    torch.export.save(program, tmp_path / "m.pt2")
    source = load(tmp_path / "m.pt2", (InputSpec("input", (9, 4)),))
    with pytest.raises(UserError, match=r"exported for other shapes: it needs input.size\(\)\[0\] <= 8"):
        capture(source, synthetic(source.inputs))


def test_nested_and_constant_inputs(tmp_path):
    torch.manual_seed(0)
    model, ids, scale = Net().eval(), torch.tensor([[1, 2, 6]]), torch.tensor([2.0])
    source = load(save(torch.export.export(model, (ids,), {"scales": [scale], "flag": True}), tmp_path / "m"))
    assert source.program is None, "flag is an input that is no tensor"
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.inputs] == [
        ("ids", (1, 3), "int32"),
        ("scales_0", (1,), "float32"),
    ]
    assert source.limits == {"ids": (0, 7, False)}
    with torch.no_grad():
        assert torch.equal(
            source.module(ids=ids, scales_0=scale)["logits"], model(ids, scales=[scale])["logits"]
        )
        exported = torch.export.export(source.module, (), {"ids": ids, "scales_0": scale}, strict=False)
        assert torch.equal(
            exported.module()(ids=ids, scales_0=scale)["rest"][0], model(ids, scales=[scale])["rest"][0]
        )


def test_a_mask_keeps_the_values_of_its_example(tmp_path):
    class Masked(torch.nn.Module):
        def forward(self, a, b):
            return a * b

    program = torch.export.export(
        Masked(), (torch.ones(1, 4, dtype=torch.long), torch.tensor([[0, 9, 3, 1]]))
    )
    source = load(save(program, tmp_path / "m"))
    (batch,) = synthetic(source.inputs, limits=source.limits).batches
    assert batch["a"].tolist() == [[1] * 4] and batch["b"].tolist() == [[0, 9, 3, 1]]


def test_a_type_that_nothing_can_stand_for_is_refused(tmp_path):
    class Real(torch.nn.Module):
        def forward(self, x):
            return x.real

    program = torch.export.export(Real(), (torch.ones(3, 4, dtype=torch.complex64),))
    assert "input x is torch.complex64; artifacts take bool, float16, float32, int32." in refusal(
        save(program, tmp_path / "m")
    )


def test_what_is_fixed_is_said(tmp_path):
    dims = {"x": {0: torch.export.Dim("n", max=64)}}
    path = save(torch.export.export(Affine(), (torch.ones(3, 4),), dynamic_shapes=dims), tmp_path / "m")
    assert not load(path).warnings, "what becomes of them depends on the targets"
    (warning,) = fixed_sizes(load(path), (), ())
    assert warning.startswith("Input x of the exported program has dynamic dimensions;")
    assert "the artifact fixes dimension 0 to 3, as it was exported." in warning
    assert "--input x:Nx4" in warning
    given = (InputSpec("x", (5, 4)),)
    (warning,) = fixed_sizes(load(path, given), (), given)
    assert "fixes dimension 0 to 5, as --input says." in warning
    two = save(torch.export.export(Affine(), (torch.ones(2, 4),)), tmp_path / "two")
    assert "a fixed batch of 2" in load(two).warnings[0]
    assert not load(save(torch.export.export(Affine(), (torch.ones(3, 4),)), tmp_path / "three")).warnings


def test_transformers_outputs_are_registered_by_loading(tmp_path):
    import transformers

    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    program = torch.export.export(
        transformers.BertModel(config).eval(), (torch.ones(1, 4, dtype=torch.long),), strict=False
    )
    source = load(save(program, tmp_path / "m"))
    assert set(source.module(**{source.inputs[0].name: torch.ones(1, 4, dtype=torch.long)})) == {
        "last_hidden_state",
        "pooler_output",
    }


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def rewrite(path, change):
    """change(member name without the top folder, bytes) -> bytes"""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(name.partition("/")[2], data))


def edit_json(path, edit):
    def change(name, data):
        if name != "models/model.json":
            return data
        model = json.loads(data)
        edit(model)
        return json.dumps(model).encode()

    rewrite(path, change)


def test_payload_among_the_example_inputs_does_not_run(static, tmp_path):
    buffer = io.BytesIO()
    torch.save(Payload(tmp_path / "ran"), buffer)
    rewrite(
        static[0], lambda name, data: buffer.getvalue() if name.startswith("data/sample_inputs/") else data
    )
    message = refusal(static[0])
    assert (
        "carries code: data/sample_inputs/model.pt would import posix.system. None of it was run." in message
    )
    assert not (tmp_path / "ran").exists()
    refusal(static[0], trust_pickle=True)
    assert (tmp_path / "ran").exists(), "the payload must be one that can run"


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            lambda m: m["graph_module"]["graph"]["nodes"][0].update(target="torch.hub.load"),
            "the operator torch.hub.load",
        ),
        (
            lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec='{"__enum__": 1}'
            ),
            "a structure that imports",
        ),
    ],
    ids=["operator", "structure"],
)
def test_code_in_the_graph_is_refused(static, edit, message):
    edit_json(static[0], edit)
    assert message in refusal(static[0])


@pytest.mark.parametrize(
    "text",
    [
        "exec(chr(97))",
        "__import__('os')",
        "Symbol('s0').func",
        "S('open(1)')",
        "Max(1, Symbol('x', a=eval('1')))",
        "Max(1)(1)",
    ],
)
def test_expressions_that_call_python_are_refused(static, text):
    edit_json(
        static[0],
        lambda m: m["graph_module"]["graph"]
        .setdefault("sym_int_values", {})
        .update(s={"as_expr": {"expr_str": text}}),
    )
    assert "the shape expression" in refusal(static[0])


def test_guards_are_not_executed(static, tmp_path):
    edit_json(
        static[0], lambda m: m.update(guards_code=[f"__import__('os').system('touch {tmp_path / 'ran'}')"])
    )
    source = load(static[0])
    source.module(x=torch.ones(3, 4))
    source.program.module()(torch.ones(3, 4))
    assert not (tmp_path / "ran").exists()


def test_broken_graph(static):
    rewrite(static[0], lambda name, data: b"{oops" if name == "models/model.json" else data)
    assert "models/model.json is not valid JSON" in refusal(static[0])


def test_missing_parts(static):
    edit_json(static[0], lambda m: m.pop("graph_module"))
    assert "cannot be loaded as an exported program" in refusal(static[0])


def test_damaged_example_inputs(static):
    rewrite(
        static[0],
        lambda name, data: data[: len(data) // 2] if name.startswith("data/sample_inputs/") else data,
    )
    assert "sample_inputs/model.pt is a damaged zip archive" in refusal(static[0])


def test_a_buffer_may_be_called_as_what_a_graph_has(tmp_path):
    """torch raises KeyError where an exported program's module takes a buffer `code`: quantizers have one."""

    class Quantizer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("code", torch.tensor([0.5, 2.0]))

        def forward(self, x):
            return x * self.code

    program = torch.export.export(Quantizer(), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "net.pt2")
    source = load(tmp_path / "net.pt2")
    captured = capture(source, synthetic(source.inputs, 1, 0))
    x, answer = captured.samples.batches[0]["x"], captured.reference[0]["output"]
    assert (answer == x * program.state_dict["code"].numpy()).all()
    assert [tensor.name for tensor in captured.tensors] == ["code_"]
