"""Modules, weights with a factory, TorchScript: shapes, names and refusals."""

import zipfile

import pytest
import torch

from cidermill.models.capture import capture
from cidermill.models.errors import UserError
from cidermill.models.inputs import InputSpec
from cidermill.models.load import load
from cidermill.models.samples import synthetic

IMAGE = (InputSpec("x", (1, 3, 8, 8)),)
FACTORY = """
import torch
def build():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 2),
    )
class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)
    def forward(self, tokens, gain, shift=None):
        return self.table(tokens) * gain
def other(): return torch.nn.Linear(4, 2)
def wide(): return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
def broken(): raise RuntimeError("no GPU")
def number(): return 3
constant = 5
"""


def refusal(path, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, *args, **options)
    assert error.value.hint
    return str(error.value)


@pytest.mark.parametrize(
    "model, proposal",
    [
        (
            lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)),
            "the first layer Conv2d takes 3 channels: try --input input:1x3x224x224",
        ),
        (
            lambda: torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2)),
            "Conv2d takes 4 channels: try --input input:1x4x224x224",
        ),
        (
            lambda: torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3)),
            "Conv1d takes 2 channels: try --input input:1x2x1000",
        ),
        (
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)),
            "Linear takes 64 features: try --input input:1x64",
        ),
        (
            lambda: torch.nn.Sequential(torch.nn.Embedding(9, 2)),
            "Embedding takes integers below 9: try --input input:1x16:int32",
        ),
        (
            lambda: torch.nn.LSTM(7, 2, batch_first=True),
            "LSTM takes sequences of 7 features: try --input input:1x16x7",
        ),
        (
            lambda: torch.nn.TransformerEncoderLayer(8, 2),
            "MultiheadAttention takes sequences of 8 features: try --input src:1x16x8",
        ),
        (
            lambda: torch.nn.Sequential(torch.nn.BatchNorm2d(6)),
            "BatchNorm2d takes 6 channels: try --input input:1x6x224x224",
        ),
        (lambda: torch.nn.Sequential(torch.nn.ReLU()), "try --input input:SHAPE"),
    ],
)
def test_missing_shapes_come_with_a_proposal(tmp_path, model, proposal):
    torch.save(model(), tmp_path / "m.pt")
    message = refusal(tmp_path / "m.pt")
    assert "m.pt does not say which shapes it takes." in message and proposal in message


def test_module(convnet_file, convnet):
    source = load(convnet_file, IMAGE)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(source.module(x=x), convnet(x))
        exported = torch.export.export(source.module, (), {"x": x}, strict=False)
        assert torch.allclose(exported.module()(x=x), convnet(x))
    assert "0.weight" in exported.state_dict, "parameters keep their names"
    assert source.sha256 == __import__("hashlib").sha256(convnet_file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "inputs, message",
    [
        ((InputSpec("x", (1, 64)),), "does not run on x (1x64 float32): RuntimeError"),
        ((InputSpec("x", (1, 4, 8, 8)),), "expected input[1, 4, 8, 8] to have 3 channels"),
        ((InputSpec("x", (1, 3, 8, 8), "int32"),), "does not run on x (1x3x8x8 int32)"),
        ((InputSpec("x", (1, 3, 8, 8)), InputSpec("y", (1,))), "has no input x, y. Its inputs are: input."),
    ],
    ids=["rank", "channels", "dtype", "two"],
)
def test_wrong_inputs(convnet_file, inputs, message):
    assert message in refusal(convnet_file, inputs)


def test_state_dict_without_class(tmp_path, convnet):
    torch.save(convnet.state_dict(), tmp_path / "m.pt")
    message = refusal(tmp_path / "m.pt", IMAGE)
    assert "holds 9 weights but not the model they belong to (first: 0.weight)." in message
    assert "--model-class package.module:factory" in message


@pytest.mark.parametrize("kind", ["zip", "legacy", "checkpoint", "safetensors"])
def test_state_dict(tmp_path, package, convnet, kind):
    from safetensors.torch import save_file

    name, path = package("factory_a", FACTORY), tmp_path / "w.bin"
    if kind == "safetensors":
        save_file(convnet.state_dict(), path)
    else:
        saved = (
            {"model_state_dict": convnet.state_dict(), "epoch": 3}
            if kind == "checkpoint"
            else convnet.state_dict()
        )
        torch.save(saved, path, _use_new_zipfile_serialization=kind != "legacy")
    source = load(path, IMAGE, f"{name}:build")
    x = torch.randn(1, 3, 8, 8)
    assert source.format == "state-dict"
    with torch.no_grad():
        assert torch.equal(source.module(x=x), convnet(x))


@pytest.mark.parametrize(
    "model_class, message",
    [
        ("factory_b", "--model-class 'factory_b' is not package.module:name."),
        (
            "nowhere.at_all:build",
            "importing nowhere.at_all failed with ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("factory_b:absent", "factory_b has no absent."),
        ("factory_b:broken", "failed with RuntimeError: no GPU"),
        ("factory_b:number", "returned a int, not a torch.nn.Module."),
        ("factory_b:constant", "is a int, which cannot be called."),
        (
            "factory_b:Pair",
            "does not fit factory_b:Pair: weights missing 1 (table.weight) and unexpected 9 (0.weight",
        ),
        ("factory_b:wide", "does not fit factory_b:wide: weights unexpected 7 ("),
    ],
)
def test_model_class_refusals(tmp_path, package, convnet, model_class, message):
    package("factory_b", FACTORY)
    torch.save(convnet.state_dict(), tmp_path / "m.pt")
    assert message in refusal(tmp_path / "m.pt", IMAGE, model_class)


def test_weights_of_another_size(tmp_path, package, convnet):
    package("factory_c", FACTORY)
    torch.save(torch.nn.Linear(4, 3).state_dict(), tmp_path / "m.pt")
    assert "does not fit factory_c:other: size mismatch for weight" in refusal(
        tmp_path / "m.pt", (), "factory_c:other"
    )
    torch.save({f"module.{k}": v for k, v in convnet.state_dict().items()}, tmp_path / "m.pt")
    assert "save model.module.state_dict()" in refusal(tmp_path / "m.pt", (), "factory_c:build")


def test_inputs_of_own_classes_go_by_name(tmp_path, package):
    name = package("factory_d", FACTORY)
    torch.save({"table.weight": torch.ones(5, 4)}, tmp_path / "m.pt")
    given = InputSpec("gain", (1,)), InputSpec("tokens", (1, 3), "int32")
    source = load(tmp_path / "m.pt", given, f"{name}:Pair")
    assert source.limits == {"tokens": (0, 5, False)} and [spec.name for spec in source.inputs] == [
        "gain",
        "tokens",
    ]
    assert source.module(gain=torch.tensor([2.0]), tokens=torch.tensor([[0, 1, 4]])).eq(2).all()
    assert "also needs the input gain." in refusal(tmp_path / "m.pt", given[1:], f"{name}:Pair")
    message = refusal(tmp_path / "m.pt", (InputSpec("ids", (1, 3)),), f"{name}:Pair")
    assert "has no input ids. Its inputs are: tokens, gain, shift (optional)." in message


def test_other_objects(tmp_path, convnet_file):
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "m.pt")
    assert "holds neither a module nor a state dict, but a dict with the keys epoch, loss." in refusal(
        tmp_path / "m.pt"
    )
    torch.save(torch.ones(3), tmp_path / "m.pt")
    assert "holds neither a module nor a state dict, but a Tensor." in refusal(tmp_path / "m.pt")
    assert "is a whole model (Sequential), so --model-class has no use." in refusal(
        convnet_file, IMAGE, "a.b:c"
    )


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 3, 8, 8))], ids=["script", "trace"]
)
def test_torchscript(tmp_path, convnet, make):
    make(convnet).save(tmp_path / "m.pt")
    assert (
        "m.pt does not say which shapes it takes.\nNote: the first layer Conv2d takes 3 channels"
        in refusal(tmp_path / "m.pt")
    )
    source = load(tmp_path / "m.pt", (InputSpec("input", (1, 3, 8, 8)),))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert source.format == "torchscript" and torch.allclose(
            source.module(input=x), convnet(x), atol=1e-6
        )
        assert torch.allclose(
            torch.export.export(source.module, (), {"input": x}, strict=False).module()(input=x),
            convnet(x),
            atol=1e-6,
        )
    assert "does not run on input (1x8 float32)" in refusal(tmp_path / "m.pt", (InputSpec("input", (1, 8)),))


class StepsOfFrames(torch.nn.Module):
    """A voice activity detector: as many steps of a cell as there are frames, branches on the rank."""

    def __init__(self):
        super().__init__()
        self.conv, self.cell = torch.nn.Conv1d(1, 4, 8, 4), torch.nn.LSTMCell(4, 6)
        self.register_buffer("scale", torch.rand(4, 1))

    def forward(self, audio: torch.Tensor, h: torch.Tensor, c: torch.Tensor):
        if audio.dim() == 2:
            audio = audio.unsqueeze(1)
        if audio.dim() > 3:
            raise ValueError("too many dimensions")
        frames = torch.relu(self.conv(audio)) * self.scale
        heard: list[torch.Tensor] = []
        for index in range(frames.size(2)):
            h, c = self.cell(frames[:, :, index], (h, c))
            heard.append(h)
        return torch.stack(heard, 2), h, c


def test_torchscript_whose_loops_depend_on_sizes_is_interpreted(tmp_path):
    module = StepsOfFrames().eval()
    torch.jit.script(module).save(tmp_path / "m.pt")
    shapes = {"audio": (1, 40), "h": (1, 6), "c": (1, 6)}
    source = load(tmp_path / "m.pt", tuple(InputSpec(name, shape) for name, shape in shapes.items()))
    inputs = [torch.randn(shape) for shape in shapes.values()]
    program = source.program
    assert {"conv.weight", "cell.bias_hh", "scale"} <= program.state_dict.keys()
    with torch.no_grad():
        for got, want in zip(program.module()(*inputs), module(*inputs), strict=True):
            torch.testing.assert_close(got, want)


class Search(torch.nn.Module):
    def forward(self, x):
        words: dict[str, int] = {}
        while float(x.sum()) < 10.0:
            x = x + 1.0
            words[str(len(words))] = 1
        return x


class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        for _ in range(x.size(1)):
            self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    "module, reason, hint",
    [
        (Search(), "decides by the values of its data (while float(x.sum()) < 10.0:)", "torch.where"),
        (Counts(), "cannot turn into an exported program: it changes attributes", "torch.export.save"),
    ],
    ids=["data", "attributes"],
)
def test_torchscript_that_cannot_be_converted(tmp_path, module, reason, hint):
    torch.jit.script(module).save(tmp_path / "m.pt")
    message = refusal(tmp_path / "m.pt", (InputSpec("x", (1, 3)),))
    assert reason in message and hint in message


DATACLASS = """
import dataclasses, torch
@dataclasses.dataclass
class Inner:
    c: torch.Tensor
@dataclasses.dataclass
class Answer:
    a: torch.Tensor
    b: Inner
class Opaque:
    pass
class Net(torch.nn.Module):
    def __init__(self, opaque=False):
        super().__init__()
        self.linear, self.opaque = torch.nn.Linear(4, 4), opaque
    def forward(self, x):
        return Opaque() if self.opaque else Answer(self.linear(x), Inner(x + 1))
def opaque(): return Net(True)
"""


def captured_outputs(path, factory):
    source = load(path, (InputSpec("x", (1, 4)),), factory)
    return [spec.name for spec in capture(source, synthetic(source.inputs)).outputs]


def test_dataclass_outputs_go_by_their_fields(tmp_path, package):
    package("answers", DATACLASS)
    torch.save(torch.nn.ModuleDict({"linear": torch.nn.Linear(4, 4)}).state_dict(), tmp_path / "s.pt")
    assert captured_outputs(tmp_path / "s.pt", "answers:Net") == ["a", "b_c"]
    with pytest.raises(UserError, match="returns an object of the class answers.Opaque"):
        captured_outputs(tmp_path / "s.pt", "answers:opaque")


@pytest.mark.parametrize("name", ["y" * 300, "loop"])
def test_a_path_that_the_system_refuses(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    assert name in refusal(tmp_path / name)


def test_torchscript_with_a_short_storage_does_not_crash_the_process(tmp_path, convnet):
    torch.jit.trace(convnet, torch.randn(1, 3, 8, 8)).save(str(tmp_path / "t.pt"))
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"" if name.endswith("data/0") else data)
    assert "is incomplete: data/0 has 0 of" in refusal(tmp_path / "t.pt", IMAGE)
