"""Packages of several sizes beside those that coremltools itself writes: equal borders in the specification,
equal answers in the runner."""

import numpy as np
import pytest
import torch

from cidermill import convert, open_runner, validate
from cidermill.models.inputs import parse_inputs
from tests.flexible_models import Pictures, Pooled, Text


class Tuple(torch.nn.Module):
    """What a dict holds, in its order: coremltools traces no dicts."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        result = self.model(*inputs)
        return tuple(result.values()) if isinstance(result, dict) else (result,)


def listed(ct, *shapes):
    return ct.EnumeratedShapes(list(shapes), default=shapes[0])


CASES = {
    "pictures": (
        Pictures,
        "image:1x3x32,48x32,64",
        lambda ct: {"image": listed(ct, (1, 3, 32, 32), (1, 3, 48, 64))},
        [(1, 3, 32, 32), (1, 3, 48, 64)],
    ),
    "text": (
        Text,
        "ids:1x1..64@16:int32 mask:1x16:int32",
        lambda ct: dict.fromkeys(("ids", "mask"), (1, ct.RangeDim(1, 64, default=16, symbol="length"))),
        [(1, 16), (1, 1), (1, 64), (1, 37)],
    ),
    "listed text": (
        Text,
        "ids:1x16,32:int32 mask:1x16:int32",
        lambda ct: dict.fromkeys(("ids", "mask"), listed(ct, (1, 16), (1, 32))),
        [(1, 16), (1, 32)],
    ),
    "pooled": (
        Pooled,
        "steps:1x2..30@8x12",
        lambda ct: {"steps": (1, ct.RangeDim(2, 30, default=8), 12)},
        [(1, 8, 12), (1, 2, 12), (1, 30, 12)],
    ),
}


def theirs(ct, model, shapes, folder):
    examples = {
        name: torch.zeros(1, 16, dtype=torch.int32) + (name == "mask")
        if name in ("ids", "mask")
        else torch.zeros(1, 8, 12)
        if name == "steps"
        else torch.zeros(1, 3, 32, 32)
        for name in shapes
    }
    traced = torch.jit.trace(Tuple(model).eval(), tuple(examples.values()), check_trace=False)
    integer = {True: np.int32, False: np.float32}
    inputs = [
        ct.TensorType(name, shape, dtype=integer[not examples[name].is_floating_point()])
        for name, shape in shapes.items()
    ]
    package = folder / "theirs.mlpackage"
    outputs = [ct.TensorType(dtype=np.float32) for _ in traced(*examples.values())]
    target = ct.target.iOS18
    converted = ct.convert(traced, inputs=inputs, outputs=outputs, minimum_deployment_target=target)
    converted.save(str(package))
    return package


def border(ct, package):
    """-> the inputs' types as the description has them; the kinds of outputs and which of their sizes are
    open; which dimensions the program declares open."""
    spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    inputs = {one.name: one.type.SerializeToString(deterministic=True) for one in spec.description.input}
    outputs = [one.type.SerializeToString(deterministic=True) for one in spec.description.output]
    (function,) = spec.mlProgram.functions.values()
    declared = {
        one.name: [size.WhichOneof("dimension") for size in one.type.tensorType.dimensions]
        for one in function.inputs
    }
    return inputs, outputs, declared


@pytest.mark.parametrize("case", CASES)
def test_borders_and_answers_are_those_of_coremltools(case, tmp_path, ct):
    make, inputs, shapes, sizes = CASES[case]
    model = make().eval()
    report = convert(model, parse_inputs(tuple(inputs.split())), out=tmp_path / "ours", cache=False)
    assert report.verdict == "pass"
    ours = tmp_path / "ours" / report.artifacts[0].path
    other = theirs(ct, model, shapes(ct), tmp_path)
    assert border(ct, ours) == border(ct, other)
    comparison = validate(other, model, parse_inputs(tuple(inputs.split())))
    assert comparison.verdict == "pass" and len(comparison.validation.sizes) > 1
    generator = np.random.default_rng(0)
    first, second = (open_runner(package, host="reference") for package in (ours, other))
    for size in sizes:
        given = {
            name: generator.integers(0, 50, size).astype(np.int32)
            if name == "ids"
            else np.ones(size, np.int32)
            if name == "mask"
            else generator.standard_normal(size, np.float32)
            for name in (value.name for value in first.inputs)
        }
        for mine, their in zip(first(given).values(), second(given).values(), strict=True):
            assert mine.shape == their.shape
            np.testing.assert_allclose(mine, their, atol=0.02 * np.abs(their).max())
