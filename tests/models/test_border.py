"""Types that no artifact takes: bfloat16, float64, 8 and 16 bits."""

import numpy as np
import pytest
import torch

import cidermill
from cidermill import open_runner
from cidermill.models.capture import capture
from cidermill.models.in_memory import source_of
from cidermill.models.inputs import parse_input
from cidermill.models.load import load
from cidermill.models.samples import synthetic
from cidermill.models.source import Limit

TARGETS = ("coreml", "executorch-mps")


class Net(torch.nn.Module):
    """Norms in float32 within a model of another type, as Llama computes them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv = torch.nn.Linear(64, 64), torch.nn.Conv1d(64, 8, 3, padding=1)
        self.register_buffer("scale", torch.rand(64) + 0.5)

    def forward(self, x):
        hidden = self.linear(x).to(torch.float32)
        normed = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)
        return self.conv((normed.to(x.dtype) * self.scale).transpose(1, 2))


class Pixels(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2).float() / 255)


def psnr_db(reference: torch.Tensor, answer: np.ndarray) -> float:
    wanted = reference.double().numpy()
    return 20 * np.log10(np.abs(wanted).max() / np.sqrt(np.mean((wanted - answer) ** 2)))


def run_artifact(folder, name: str, *arrays: np.ndarray) -> np.ndarray:
    runner = open_runner(next(folder.glob(f"{name}.*")), host="reference")
    (answer,) = runner(list(arrays)).values()
    return answer


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_a_program_of_another_type_is_compressed_as_float32(tmp_path, dtype, target):
    x = torch.randn(1, 5, 64).to(dtype)
    program = torch.export.export(Net().to(dtype).eval(), (x,))
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    report = cidermill.convert(program, target=target, quant="int8", out=tmp_path / "out", cache=False)
    (artifact,) = report.artifacts
    assert report.verdict == "pass" and artifact.validation.conversion[0].psnr_db > 60
    name = str(dtype).removeprefix("torch.")
    assert any(f"The model computes in {name}; it was taken as float32" in text for text in artifact.warnings)
    answer = run_artifact(tmp_path / "out", "ExportedProgram", x.to(torch.float32).numpy())
    exact = Net().to(dtype).float().eval()  # weights as they were rounded
    assert psnr_db(exact(x.float()).detach(), answer) > 38, "int8"
    assert all(torch.equal(program.state_dict[key], before[key]) for key in before), "the caller's own"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("in_memory", [True, False])
def test_pixels_in_eight_bits(tmp_path, target, in_memory):
    x = torch.randint(0, 256, (1, 9, 8, 3), dtype=torch.uint8)
    if in_memory:
        model, inputs = Pixels().eval(), (x,)
    else:
        torch.export.save(torch.export.export(Pixels().eval(), (x,)), tmp_path / "Pixels.pt2")
        model, inputs = tmp_path / "Pixels.pt2", None
    report = cidermill.convert(model, inputs, target=target, out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
    assert "Input x is uint8 in the model; the artifact takes int32" in report.artifacts[0].warnings[0]
    answer = run_artifact(tmp_path / "out", "Pixels", x.numpy().astype(np.int32))
    assert psnr_db(Pixels()(x).detach(), answer) > 60


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_integers_keep_their_own_type_where_it_counts(dtype):
    class Halves(torch.nn.Module):
        def forward(self, x):
            return (x + 100).float() * 0.5, x.float()

    x = torch.tensor([[100, 27, 3]]).to(dtype)
    source = source_of(torch.export.export(Halves(), (x,)), None)
    assert [spec.dtype for spec in source.inputs] == ["int32"]
    captured = capture(source, synthetic(source.inputs, 1, limits={"x": Limit(100, 101)}))
    wrapped, plain = captured.reference[0].values()
    assert wrapped.tolist() == [[(torch.full((), 100, dtype=dtype) + 100).item() / 2] * 3]
    assert plain.tolist() == [[100.0] * 3]
    answers = captured.program.module()(torch.full((1, 3), 100, dtype=torch.int32))
    assert answers[0].tolist() == wrapped.tolist(), "what wraps around still does"


def test_types_of_pickles(tmp_path):
    torch.save(Net().bfloat16(), tmp_path / "net.pt")
    source = load(tmp_path / "net.pt", (parse_input("x:1x5x64:bfloat16"),), trust_pickle=True)
    assert source.inputs[0].dtype == "float32" and source.module.linear.weight.dtype == torch.float32
    assert "computes in bfloat16" in source.warnings[0] and "Input x is bfloat16" in source.warnings[1]
    torch.save(Pixels(), tmp_path / "pixels.pt")
    source = load(tmp_path / "pixels.pt", (parse_input("x:1x9x8x3:uint8"),), trust_pickle=True)
    assert source.inputs[0].dtype == "int32" and "uint8" in source.warnings[0]


def test_a_bfloat16_program_keeps_its_masks_finite():
    class Masked(torch.nn.Module):
        def forward(self, x, keep):
            return torch.where(keep, x, torch.finfo(x.dtype).min).softmax(-1)

    x, keep = torch.randn(1, 4).bfloat16(), torch.tensor([[True, True, False, False]])
    source = source_of(torch.export.export(Masked(), (x, keep)), None)
    answer = source.module(x=x.float(), keep=keep)
    assert answer.dtype == torch.float32 and answer[0, 2:].tolist() == [0, 0]
