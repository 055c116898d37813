"""Flexible shapes: packages by coremltools' own converter, each shape with the figures of a package that was
converted for it alone."""

import pytest
import torch

from cidermill.validation import open_runner
from cidermill.validation.estimate.flexible import is_flexible, variants
from cidermill.validation.estimate.placement import place
from cidermill.validation.runners import open_to_read


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Linear(16, 10)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def converted(ct, tmp_path_factory):
    traced = torch.jit.trace(Net().eval(), torch.zeros(1, 3, 64, 64))

    def convert(shape, name):
        path = tmp_path_factory.mktemp("flexible") / f"{name}.mlpackage"
        ct.convert(
            traced,
            inputs=[ct.TensorType("x", shape=shape)],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        ).save(str(path))
        return open_runner(path, host="reference")

    return convert


def figures(graph, **options):
    return [
        (op.type, op.bytes, pytest.approx(op.cost_ms)) for op in place(graph, "M4", "cpu_only", **options).ops
    ]


def units(graph, barred=""):
    return [op.unit for op in place(graph, "M4", "cpu_and_ne", barred).ops]


def test_each_enumerated_shape_is_the_fixed_program(ct, converted):
    runner = converted(ct.EnumeratedShapes([(1, 3, 64, 64), (1, 3, 96, 32)]), "listed")
    assert is_flexible(runner)
    found = variants(runner)
    assert [(one.kind, one.shapes["x"]) for one in found] == [
        ("enumerated", (1, 3, 64, 64)),
        ("enumerated", (1, 3, 96, 32)),
    ]
    for one in found:
        fixed = converted(one.shapes["x"], "fixed")
        assert not is_flexible(fixed)
        assert figures(one.graph) == figures(fixed.graph)
        assert units(one.graph, one.barred()) == units(fixed.graph)


def test_a_range_is_compiled_for_its_usual_shape_only(ct, converted):
    runner = converted(ct.Shape((1, 3, ct.RangeDim(32, 256, 128), 64)), "ranged")
    found = variants(runner)
    assert [(one.kind, one.shapes["x"][2]) for one in found] == [
        ("usual", 128),
        ("ranged", 32),
        ("ranged", 256),
    ]
    assert found[0].barred() == "" and {
        op.reason for op in place(found[2].graph, "M4", "cpu_and_ne", found[2].barred()).ops
    } == {"flexible shape: only the usual one is compiled for the Neural Engine"}
    assert [one.text() for one in found] == ["x 1x3x128x64", "x 1x3x32x64", "x 1x3x256x64"]


def test_shapes_too_large_to_run_are_said(ct, converted):
    found = variants(converted(ct.Shape((1, 3, ct.RangeDim(32, 10**6, 64), 64)), "wide"))
    assert [one.problem for one in found] == ["", "", "too large to run here"] and found[2].graph is None


def test_an_operator_newer_than_the_runner_is_named_in_one_line(ct, converted):
    runner = converted(ct.EnumeratedShapes([(1, 3, 64, 64), (1, 3, 96, 32)]), "newer")
    file = runner.path / "Data/com.apple.CoreML/model.mlmodel"
    file.write_bytes(file.read_bytes().replace(b"relu", b"rexu"))
    problems = {one.problem for one in variants(open_to_read(runner.path))}
    assert len(problems) == 1 and all("rexu" in problem and "\n" not in problem for problem in problems)
