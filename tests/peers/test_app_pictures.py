"""Packages that coremltools itself writes with its ImageType, and with float16 at the border, beside ours of
the same models: equal interfaces in the specification, equal answers in the runner."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cidermill
from cidermill import open_runner
from cidermill.validation.borders import as_arrays

SIZE = (16, 20)


class Convolution(torch.nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x).relu()


class Paint(torch.nn.Module):
    """A picture for a picture."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return 128 + 50 * self.conv(x / 64).tanh()


@dataclass(frozen=True)
class Case:
    """model, channels: of its input; theirs: arguments of coremltools' ImageType, or None for an array in
    half precision; ours: of the option, after the name; gives: layout of an output that is a picture."""

    model: torch.nn.Module
    channels: int
    ours: dict[str, Any]
    theirs: dict[str, Any] = field(default_factory=dict)
    picture: bool = True
    gives: str = ""
    half: bool = False


CASES = {
    "raw": Case(Convolution(), 3, {"image": "x"}, {"color_layout": "RGB"}),
    "bgr": Case(Convolution(), 3, {"image": "x:bgr"}, {"color_layout": "BGR"}),
    "gray": Case(Convolution(1), 1, {"image": "x:gray"}, {"color_layout": "GRAYSCALE"}),
    "unit": Case(Convolution(), 3, {"image": "x:unit"}, {"color_layout": "RGB", "scale": 1 / 255}),
    "scale and bias": Case(
        Convolution(), 3, {"image": "x:scale=0.02:bias=-1"},
        {"color_layout": "RGB", "scale": 0.02, "bias": [-1.0, -1.0, -1.0]},
    ),
    "bias of each": Case(
        Convolution(), 3, {"image": "x:scale=0.02:bias=-1,0.5,2"},
        {"color_layout": "RGB", "scale": 0.02, "bias": [-1.0, 0.5, 2.0]},
    ),
    "gray, half": Case(
        Convolution(1), 1, {"image": "x:gray:half"},
        {"color_layout": "GRAYSCALE", "scale": 2 / 255, "bias": -1.0},
    ),
    "a picture out": Case(
        Paint(), 3, {"image": "x", "image_output": "output"}, {"color_layout": "RGB"}, gives="RGB"
    ),
    "a picture out, bgr": Case(
        Paint(), 3, {"image": "x:bgr", "image_output": "output:bgr"}, {"color_layout": "BGR"}, gives="BGR"
    ),
    "gray out": Case(
        Paint(1), 1, {"image": "x", "image_output": "output"}, {"color_layout": "GRAYSCALE"},
        gives="GRAYSCALE",
    ),
    "gray in half precision": Case(
        Paint(1), 1, {"image": "x", "image_output": "output", "io": "float16"},
        {"color_layout": "GRAYSCALE_FLOAT16"}, gives="GRAYSCALE_FLOAT16",
    ),
    "arrays in half precision": Case(Convolution(), 3, {"io": "float16"}, picture=False, half=True),
}  # fmt: skip


def of_theirs(case, ct, path):
    shape = (1, case.channels, *SIZE)
    layout = case.theirs.get("color_layout", "")
    options = {**case.theirs, "color_layout": getattr(ct.colorlayout, layout)} if layout else {}
    taken = (
        ct.ImageType("x", shape, **options) if case.picture else ct.TensorType("x", shape, dtype=np.float16)
    )
    given = (
        ct.ImageType("output", color_layout=getattr(ct.colorlayout, case.gives))
        if case.gives
        else ct.TensorType("output", dtype=np.float16 if case.half else np.float32)
    )
    traced = torch.jit.trace(case.model.eval(), torch.zeros(shape))
    target = ct.target.iOS18
    model = ct.convert(
        traced, inputs=[taken], outputs=[given], minimum_deployment_target=target, convert_to="mlprogram",
        skip_model_load=True,
    )  # fmt: skip
    model.save(str(path))
    return path


def interface(package, ct):
    described = ct.utils.load_spec(str(package / "Data/com.apple.CoreML/model.mlmodel")).description
    return [(entry.name, str(entry.type)) for entry in (*described.input, *described.output)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ours_is_theirs(case, tmp_path, ct):
    shape = (1, case.channels, *SIZE)
    theirs = of_theirs(case, ct, tmp_path / "theirs.mlpackage")
    report = cidermill.convert(
        case.model.eval(), (torch.zeros(shape),), out=tmp_path / "out", cache=False, **case.ours
    )
    ours = tmp_path / "out" / report.artifacts[0].path
    assert interface(ours, ct) == interface(theirs, ct) and report.verdict == "pass"
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, case.channels), dtype=np.uint8)
    picture = Image.fromarray(pixels if case.channels > 1 else pixels[..., 0])
    sample = picture if case.picture else np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    answers = []
    for package in (ours, theirs):
        runner = open_runner(package, host="reference")
        answer = runner({"x": sample})
        assert hasattr(answer["output"], "convert") == bool(case.gives)
        answers.append(as_arrays(answer, runner.pictures)["output"].astype(np.float64))
    largest = np.abs(answers[1]).max()
    allowed = max(1.0 if case.gives and "FLOAT16" not in case.gives else 0.0, 2**-8 * largest)
    assert np.abs(answers[0] - answers[1]).max() <= allowed
