"""Sizes to choose from: saved packages answer as torch does at every one, and say which there are."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from cidermill import UserError, convert, open_runner, validate
from cidermill.models.inputs import parse_inputs
from cidermill.pipeline.commands.cli import convert as command
from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.examine import _one_program_for
from cidermill.validation.graph import OperatorFailed
from tests.flexible_models import Causal, Grown, Pictures, Pooled, Shared, Text

README = Path(__file__).resolve().parents[2] / "README.md"


def made(model, inputs, out, **options):
    return convert(
        model.eval(), parse_inputs(tuple(inputs.split())), out=out, cache=False, device="A15", **options
    )


def run_command(*arguments):
    return CliRunner(env={"COLUMNS": "180"}).invoke(command, [str(argument) for argument in arguments])


def package_of(report, out):
    return Path(out) / report.artifacts[0].path


def decibels(want, have):
    want, have = np.asarray(want, np.float64), np.asarray(have, np.float64)
    assert want.shape == have.shape
    return 10 * np.log10(np.abs(want).max() ** 2 / max(np.mean((want - have) ** 2), 1e-30))


def example(model, size, seed=5):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Pictures | Shared):
        return {"image": torch.randn(1, 3, *size, generator=generator)}
    if isinstance(model, Pooled):
        return {"steps": torch.randn(1, size, 12, generator=generator)}
    if isinstance(model, Grown | nn.LSTM):
        return {"x": torch.randn(1, size, 8, generator=generator)}
    ids = torch.randint(0, 50, (1, size), generator=generator)
    if isinstance(model, Causal):
        return {"ids": ids}
    return {"ids": ids, "mask": (torch.arange(size) < max(1, size - 2)).long()[None]}


def equals_torch(model, package, sizes):
    runner = open_runner(package, host="reference")
    for size in sizes:
        inputs = example(model, size)
        with torch.no_grad():
            want = model(*inputs.values())
        want = want[0] if isinstance(want, tuple) else want
        have = runner(
            {name: tensor.int() if "int" in str(tensor.dtype) else tensor for name, tensor in inputs.items()}
        )
        want = want if isinstance(want, dict) else {next(iter(have)): want}
        for name, tensor in want.items():
            assert decibels(tensor.numpy(), have[name]) > 45, (size, name)


LISTED = [
    (Pictures(), "image:1x3x32,48,64x32,64,48", [(32, 32), (48, 64), (64, 48)], "float16"),
    (Text(), "ids:1x16,32,64:int32 mask:1x16:int32", [16, 32, 64], "int8"),
    (Causal(), "ids:1x8,24,5:int32", [8, 24, 5], "float16"),
    (Pooled(), "steps:1x8,16,1x12", [8, 16, 1], "float16"),
    (Grown(), "x:1x8,20,12x8", [8, 20, 12], "float32"),
]
LISTED += [
    (Shared(), "image:1x3x16,32,48x32,24,32", [(16, 32), (32, 24), (48, 32)], "float16"),
    (nn.LSTM(8, 4, batch_first=True), "x:1x6,10,3x8", [6, 10, 3], "float32"),
]
RANGED = [
    (
        Pictures(),
        "image:1x3x32..64@32x32..96@48",
        [(32, 48), (32, 32), (64, 96), (52, 36), (47, 81)],
        "float16",
    ),
    (Text(), "ids:1x1..64@16:int32 mask:1x16:int32", [1, 2, 16, 33, 64], "float16"),
    (Causal(), "ids:1x1..40@8:int32", [1, 2, 8, 17, 40], "int8"),
    (Pooled(), "steps:1x2..30x12", [2, 7, 30], "float16"),
]


@pytest.mark.parametrize("model, inputs, sizes, quant", LISTED + RANGED, ids=lambda value: str(value)[:24])
def test_a_package_answers_as_torch_at_each_size(model, inputs, sizes, quant, tmp_path):
    report = made(model, inputs, tmp_path / "out", quant=quant)
    assert report.verdict == "pass"
    if quant == "int8":  # its own error is not ours
        exact = made(model, inputs, tmp_path / "exact")
        equals_torch(model, package_of(exact, tmp_path / "exact"), sizes)
    else:
        equals_torch(model, package_of(report, tmp_path / "out"), sizes)


def test_what_a_package_lists_is_what_was_asked_for(tmp_path, ct):
    report = made(Text(), "ids:1x16,32,64:int32 mask:1x16:int32", tmp_path / "out")
    description = (
        ct.models.MLModel(str(package_of(report, tmp_path / "out")), skip_model_load=True)
        .get_spec()
        .description
    )
    for feature in description.input:
        kind = feature.type.multiArrayType
        assert list(kind.shape) == [1, 16]
        assert [list(one.shape) for one in kind.enumeratedShapes.shapes] == [[1, 16], [1, 32], [1, 64]]


def test_ranges_are_in_the_package_and_draw_a_warning(tmp_path, ct):
    report = made(Text(), "ids:1x1..64@16:int32 mask:1x16:int32", tmp_path / "out")
    description = (
        ct.models.MLModel(str(package_of(report, tmp_path / "out")), skip_model_load=True)
        .get_spec()
        .description
    )
    for feature in description.input:
        kind = feature.type.multiArrayType
        bounds = [(one.lowerBound, one.upperBound) for one in kind.shapeRange.sizeRanges]
        assert list(kind.shape) == [1, 16] and bounds == [(1, 1), (1, 64)]
    (warning,) = report.artifacts[0].warnings
    assert "ids has a range (1x1..64)" in warning and "Neural Engine" in warning
    assert "--input ids:1x16,1,64:int32" in warning
    assert {size.inputs for size in report.artifacts[0].validation.sizes} == {
        "ids 1x16, mask 1x16", "ids 1x1, mask 1x1", "ids 1x64, mask 1x64",
    }  # fmt: skip


def test_types_that_are_declared_are_those_that_coremltools_infers(tmp_path, ct):
    """Its reader infers every type anew, from the inputs on: no size may be another."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil.types.symbolic import is_symbolic

    report = made(Causal(), "ids:1x8,24:int32", tmp_path / "out")
    package = package_of(report, tmp_path / "out")
    model = ct.models.MLModel(str(package), skip_model_load=True)
    program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    declared = {
        value.name: value.shape for value in open_runner(package, host="reference").graph.values.values()
    }
    for operation in program.functions["main"].operations:
        for value in operation.outputs:
            if operation.op_type == "const" or value.name not in declared:
                continue
            inferred = [None if is_symbolic(size) else size for size in value.shape]
            own = declared[value.name]
            assert len(own) == len(inferred)
            assert all(one is None or two is None or one == two for one, two in zip(own, inferred))


def test_weights_are_in_the_package_once(tmp_path):
    one, several = (
        made(nn.Sequential(nn.Linear(256, 256)), inputs, tmp_path / name, quant="int8")
        for name, inputs in (("one", "x:1x4x256"), ("several", "x:1x4,9,2x256"))
    )
    assert several.artifacts[0].size_bytes < one.artifacts[0].size_bytes + 3000


def test_report_and_terminal_know_each_size(tmp_path):
    file = tmp_path / "net.pt"
    torch.save(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), file
    )
    result = run_command(file, "--input", "x:1x3x16,24x16,32", "--out", tmp_path / "out", "--no-cache")
    assert result.exit_code == 0, result.output
    assert "by size" in result.output and "x 1x3x24x32" in result.output
    assert "the worst" in result.output and "the slowest" in result.output
    (artifact,) = json.loads((tmp_path / "out/report.json").read_text())["artifacts"]
    names = ["x 1x3x16x16", "x 1x3x24x32"]
    assert [size["inputs"] for size in artifact["validation"]["sizes"]] == names
    assert [shape["inputs"] for shape in artifact["latency"]["shapes"]] == names
    assert "x 1x3x24x32" in (tmp_path / "out/report.html").read_text()


class Fixed(nn.Module):
    """Takes one length only."""

    def forward(self, x):
        return x + torch.ones(8)


class Branching(nn.Module):
    """Does something else with long inputs."""

    def forward(self, x):
        return x.exp() if x.shape[1] > 10 else x.sin().relu()


def test_a_size_that_the_model_cannot_run_is_told_with_module_and_line(tmp_path):
    with pytest.raises(
        UserError, match=r"does not run at x 1x9: .*test_sizes\.py:\d+, in module .*Fixed"
    ) as error:
        made(nn.Sequential(Fixed()), "x:1x8,9", tmp_path / "out")
    assert "Leave this size out" in str(error.value) and not (tmp_path / "out").exists()


def test_sizes_of_other_structure_are_refused_with_module_and_line(tmp_path):
    with pytest.raises(UserError, match=r"other operations at other sizes, first at .*test_sizes\.py:\d+"):
        made(Branching(), "x:1x8,20", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Windowed(nn.Module):
    """Pads its length to a multiple of 4, as windows of attention do."""

    def forward(self, x):
        padded = nn.functional.pad(x.exp(), (0, 0, 0, -x.shape[1] % 4))
        return padded.view(1, -1, 4, 8).mean(2)


def test_a_pad_that_is_nothing_at_one_size_pads_at_the_others(tmp_path):
    report = made(Windowed(), "x:1x8,3,5x8", tmp_path / "out")
    runner = open_runner(package_of(report, tmp_path / "out"), host="reference")
    for size in (8, 3, 5):
        x = torch.randn(1, size, 8)
        assert decibels(Windowed()(x), runner({"x": x})["output"]) > 50
    with pytest.raises(UserError, match=r"another pad at each size .*\n.*give sizes that are listed"):
        made(Windowed(), "x:1x2..9@8x8", tmp_path / "range")


class Evened(nn.Module):
    """Its pooling has another kernel at each size."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x.exp(), (2, 2))


def test_an_argument_that_no_list_can_choose_is_refused_without_advice_to_list(tmp_path):
    with pytest.raises(UserError, match="another kernel_sizes at each size") as error:
        made(Evened(), "x:1x3x8,12x8,12", tmp_path / "out")
    assert str(error.value).endswith("without the choice in --input.")


@pytest.mark.parametrize(
    "inputs, told, hint",
    [
        ("x:1x9..4", "the range 9..4 does not go up", "4..9"),
        ("x:1x0..4", "holds the size 0", "at least 1"),
        ("x:1x4..8@9", "usual size 9 lies outside of the range 4..8", "from 4 to 8"),
        ("x:1x4,5x1,2,3", "unequal numbers of sizes", "as many for each"),
        ("x:1x4,5x1..3", "one or the other", "both a range"),
        ("x:4,4", "lists 4 twice", "once"),
        ("x:1x4,0", "whole numbers", "1x32,64,128"),
        ("x:1x2,3000000000", "3000000000 elements", "smaller"),
    ],
)
def test_bad_sizes_are_one_message(inputs, told, hint, tmp_path):
    file = tmp_path / "net.pt"
    torch.save(nn.Sequential(nn.Linear(4, 4)), file)
    result = run_command(file, "--input", inputs, "--out", tmp_path / "out")
    assert result.exit_code == 2 and told in result.output and hint in result.output
    assert "Traceback" not in result.output and not (tmp_path / "out").exists()


def test_other_targets_and_old_systems_refuse(tmp_path):
    file = tmp_path / "net.pt"
    torch.save(nn.Sequential(nn.Linear(4, 4)), file)
    result = run_command(file, "--input", "x:1,2x4", "--target", "executorch-mps", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "has one" in result.output and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="before iOS18 one input"):
        made(Text(), "ids:1x16,32:int32 mask:1x16:int32", tmp_path / "out", deployment_target="iOS17")
    with pytest.raises(UserError, match="awq"):
        made(Text(128), "ids:1x16,32:int32 mask:1x16:int32", tmp_path / "out", quant="int4:awq")
    assert not (tmp_path / "out").exists()


def test_a_classifier_has_sizes_too(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\nthree\n")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    report = made(net, "x:1x3x16,24x16,32", tmp_path / "out", labels=str(labels))
    assert report.verdict == "pass"
    runner = open_runner(package_of(report, tmp_path / "out"), host="reference")
    picture = torch.randn(1, 3, 24, 32)
    answer = runner({"x": picture})
    want = net(picture).softmax(-1)[0]
    assert answer["classLabel"] == ["one", "two", "three"][int(want.argmax())]


@pytest.mark.parametrize("inputs", ["x:1x6,40x8", "x:1x1..40@12x8"])
def test_loops_are_refused_in_words(inputs, tmp_path):
    with pytest.raises(UserError, match="is a loop over steps in a package"):
        made(nn.Sequential(nn.GRU(8, 4, batch_first=True)), inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_range_that_holds_sizes_the_model_cannot_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"does not run at image 1x3x\d+x32") as error:
        made(Shared(), "image:1x3x16..48@32x32", tmp_path / "out")
    assert "flexible_models.py" in str(error.value) and "list those that the model takes" in str(error.value)


def test_parts_refuse(tmp_path):
    file = tmp_path / "net.pt"
    torch.save(nn.Sequential(nn.Linear(4, 4)), file)
    result = run_command(file, "--input", "x:1,2x4", "--out", tmp_path / "out", "--part", "a,b")
    assert result.exit_code == 2 and "--part names 2" in result.output, result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "inputs, sizes",
    [
        ("ids:1x16,64,32:int32 mask:1x16:int32", ["1x16", "1x64", "1x32"]),
        ("ids:1x2..64@16:int32 mask:1x16:int32", ["1x16", "1x2", "1x64"]),
    ],
)
def test_validate_compares_at_each_size_of_an_artifact(inputs, sizes, tmp_path):
    report = made(Text(), inputs, tmp_path / "out")
    example = torch.zeros(1, 16, dtype=torch.int32), torch.ones(1, 16, dtype=torch.int32)
    names = dict(zip(("ids", "mask"), example))
    package = package_of(report, tmp_path / "out")
    comparison = validate(package, Text().eval(), names)
    assert comparison.verdict == "pass"
    assert [size.inputs for size in comparison.validation.sizes] == [
        f"ids {one}, mask {one}" for one in sizes
    ]

    class Longer(Text):
        """Other positions from the 40th on."""

        def forward(self, ids, mask):
            answer = super().forward(ids, mask)
            late = (torch.arange(ids.shape[1]) >= 40).float()
            return {**answer, "states": answer["states"] + 5 * late[:, None]}

    comparison = validate(package, Longer().eval(), names)
    assert comparison.verdict == "fail"
    assert "ids 1x64, mask 1x64" in comparison.validation.conversion[0].sample


def test_diff_tells_sizes(tmp_path):
    for name, inputs in (
        ("one", "steps:1x8x12"),
        ("listed", "steps:1x8,16x12"),
        ("ranged", "steps:1x2..9@8x12"),
    ):
        made(Pooled(), inputs, tmp_path / name)
    for first, second, told in (
        ("one", "listed", ("float32 1x8x12", "float32 1x8x12 or 1x16x12")),
        ("listed", "ranged", ("float32 1x8x12 or 1x16x12", "float32 1x2..9x12")),
    ):
        result = CliRunner(env={"COLUMNS": "180"}).invoke(
            main, ["diff", str(tmp_path / first), str(tmp_path / second)]
        )
        assert all(text in result.output for text in told), result.output


def test_bytes_are_equal_each_time(tmp_path):
    first, second = (made(Causal(), "ids:1x8,24:int32", tmp_path / name) for name in ("one", "two"))
    assert first.artifacts[0].sha256 == second.artifacts[0].sha256


def exported(tmp_path, model, inputs, shapes):
    program = torch.export.export(model.eval(), tuple(inputs), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "program.pt2")
    return tmp_path / "program.pt2"


def sizes_in(package):
    """{input: its ranges, or its shapes}"""
    features = open_runner(package, host="reference").features
    return {name: feature.ranges or feature.shapes for name, feature in features.items()}


@pytest.fixture(scope="module")
def text_program(tmp_path_factory):
    length = torch.export.Dim("length", min=2, max=48)
    shapes = {"ids": {1: length}, "mask": {1: length}}
    example = torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)
    return exported(tmp_path_factory.mktemp("text"), Text(), example, shapes)


def test_open_dimensions_of_a_program_stay_open(text_program, tmp_path):
    result = run_command(text_program, "--out", tmp_path / "out", "--no-cache")
    assert result.exit_code == 0, result.output
    package = tmp_path / "out/program.mlpackage"
    assert sizes_in(package) == dict.fromkeys(("ids", "mask"), ((1, 1), (2, 48)))
    equals_torch(Text().eval(), package, [2, 8, 31, 48])
    assert "Neural Engine" in result.output and "the artifact fixes" not in result.output


@pytest.mark.parametrize(
    "inputs, sizes",
    [
        ("ids:1x8,16,48:int32", ((1, 8), (1, 16), (1, 48))),
        ("ids:1x4..20@8:int32", ((1, 1), (4, 20))),
        ("mask:1x16:int32", ()),
    ],
)
def test_what_is_said_of_one_input_holds_for_all_of_its_size(text_program, inputs, sizes, tmp_path):
    result = run_command(text_program, "--input", inputs, "--out", tmp_path / "out", "--no-cache")
    assert result.exit_code == 0, result.output
    assert sizes_in(tmp_path / "out/program.mlpackage") == dict.fromkeys(("ids", "mask"), sizes)
    if not sizes:
        assert "fixes dimension 1 to 16" in result.output


@pytest.mark.parametrize(
    "inputs, told",
    [
        ("ids:1x8,64:int32", "offers 64 for dimension 1 of ids"),
        ("ids:1x1..48:int32", "was exported with for 2..48"),
        ("ids:1,2x8:int32", "a fixed dimension 0 of ids"),
    ],
)
def test_a_program_keeps_to_the_range_it_was_exported_for(text_program, inputs, told, tmp_path):
    result = run_command(text_program, "--input", inputs, "--out", tmp_path / "out")
    assert result.exit_code == 2 and told in result.output and not (tmp_path / "out").exists()


def test_a_dimension_that_is_a_multiple_is_offered_in_its_steps(tmp_path):
    steps = 4 * torch.export.Dim("quarter", min=2, max=8)
    path = exported(tmp_path, Pooled(), [torch.randn(1, 8, 12)], {"steps": {1: steps}})
    result = run_command(path, "--input", "steps:1x8,16,32x12", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sizes_in(tmp_path / "out/program.mlpackage")["steps"] == ((1, 8, 12), (1, 16, 12), (1, 32, 12))
    for wrong in ("8,18", "8,36", "8,4"):
        result = run_command(path, "--input", f"steps:1x{wrong}x12", "--out", tmp_path / "no")
        assert result.exit_code == 2 and "for 8..32 in steps of 4" in " ".join(result.output.split())


def test_an_open_upper_end_needs_to_be_said(tmp_path):
    steps = torch.export.Dim.AUTO
    path = exported(tmp_path, Pooled(), [torch.randn(1, 8, 12)], {"steps": {1: steps}})
    result = run_command(path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "has no upper end" in result.output
    (said,) = [word.rstrip(";") for word in result.output.split() if word.startswith("steps:")]
    assert said == "steps:1x2..512@8x12" and not (tmp_path / "out").exists()
    result = run_command(path, "--input", said, "--out", tmp_path / "out", "--no-cache")
    assert result.exit_code == 0, result.output
    assert sizes_in(tmp_path / "out/program.mlpackage") == {"steps": ((1, 1), (2, 512), (12, 12))}


def test_a_range_without_a_lower_end_begins_where_the_program_runs(tmp_path):
    pictures = {0: torch.export.Dim("batch", max=6)}
    path = exported(tmp_path, Pooled(), [torch.randn(3, 8, 12)], {"steps": pictures})
    report = convert(path, out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
    runner = open_runner(tmp_path / "out/program.mlpackage", host="reference")
    assert runner.features["steps"].ranges[0] == (1, 6)
    steps = torch.randn(1, 8, 12)
    assert decibels(Pooled()(steps).detach().numpy(), next(iter(runner({"steps": steps}).values()))) > 45


def test_sizes_that_are_computed_of_others_are_fixed(tmp_path):
    class Pairs(nn.Module):
        def forward(self, one, two):
            return one * 2 + two[::2]

    pairs = torch.export.Dim("pairs", max=32)
    path = exported(
        tmp_path, Pairs(), [torch.randn(4), torch.randn(8)], {"one": {0: pairs}, "two": {0: 2 * pairs}}
    )
    report = convert(path, out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
    assert "the artifact fixes dimension 0 to 4" in report.artifacts[0].warnings[0]
    with pytest.raises(UserError, match="sizes of other inputs are computed of dimension 0 of one"):
        convert(path, parse_inputs(("one:4,8",)), out=tmp_path / "more")


def test_a_fixed_program_offers_no_sizes(tmp_path):
    path = exported(tmp_path, Pooled(), [torch.randn(1, 8, 12)], None)
    with pytest.raises(UserError, match="exported with fixed sizes"):
        convert(path, parse_inputs(("steps:1x8,16x12",)), out=tmp_path / "out")


def test_open_dimensions_are_fixed_for_targets_of_one_size(text_program, tmp_path):
    result = run_command(text_program, "--target", "executorch-mps", "--out", tmp_path / "out", "--no-cache")
    assert result.exit_code == 0, result.output
    assert "the artifact fixes dimension 1 to 8" in result.output


def test_the_readme_shows_what_works(tmp_path):
    lines = [line.partition(" # ")[0] for line in README.read_text().splitlines() if "convert" in line]
    shown = [
        shlex.split(line)
        for line in lines
        if "--input" in line and (".." in line or ",320" in line or "32,64" in line)
    ]
    assert len(shown) == 3
    for number, words in enumerate(shown):
        assert words[:3] == ["cidermill", "convert", "model.pt"]
        text = words[-1].startswith("ids")
        model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)) if text else nn.Conv2d(3, 2, 3, stride=4)
        torch.save(model, tmp_path / "model.pt")
        out = tmp_path / str(number)
        result = run_command(tmp_path / "model.pt", *words[3:], "--out", out, "--no-cache")
        assert result.exit_code == 0, result.output
        (runner,) = [open_runner(path, host="reference") for path in out.glob("*.mlpackage")]
        assert None in runner.inputs[0].shape


def test_an_operation_that_fails_at_one_of_the_sizes_is_told_in_words():
    failed = OperatorFailed("reshape (view) cannot be computed")
    with pytest.raises(UserError, match="cannot serve all sizes of --input: at one of them reshape"):
        with _one_program_for([((1, 8),)]):
            raise failed
    with pytest.raises(OperatorFailed):
        with _one_program_for(()):
            raise failed


def test_validate_takes_sizes_from_the_artifact(text_program, tmp_path):
    result = CliRunner().invoke(
        main, ["validate", str(text_program), "--against", str(text_program), "--input", "ids:1x4,8:int32"]
    )
    assert result.exit_code == 2 and "offers several sizes for ids" in result.output
