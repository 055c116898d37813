"""cidermill from Python: the same artifacts as from the command line, in silence, and nothing of the caller's
is touched."""

import doctest
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cidermill
from cidermill.models.in_memory import source_of
from cidermill.pipeline import api
from cidermill.pipeline.commands.cli import convert as convert_command
from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.report.json_files import to_builtins


class Network(torch.nn.Module):
    """Two inputs by name, dropout and a batch norm, which know training from eval mode."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = torch.nn.Embedding(50, 64), torch.nn.BatchNorm1d(8)
        self.drop, self.out = torch.nn.Dropout(0.5), torch.nn.Linear(64, 40)

    def forward(self, ids, scale):
        return {"scores": self.out(self.drop(self.norm(self.embed(ids)))) * scale}


TARGETS = ["coreml", "executorch-mps"]
INPUTS = (torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, 1))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Tanh(), torch.nn.Linear(48, 64))


def state_of(module):
    tensors = {name: tensor.clone() for name, tensor in module.state_dict(keep_vars=True).items()}
    flags = [(part.training, sorted(vars(part))) for part in module.modules()]
    return tensors, flags, [(id(value), value.dtype) for value in module.parameters()]


def test_the_examples_of_the_docstrings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    assert doctest.testmod(api, optionflags=flags) == (0, 17)


def test_a_module_a_program_and_a_file_give_equal_artifacts(linear, tmp_path):
    example = (torch.zeros(1, 64),)
    program = torch.export.export(linear.eval(), example)
    torch.export.save(program, tmp_path / "net.pt")
    command = [
        str(tmp_path / "net.pt"),
        "--quant",
        "int8",
        "--target",
        "coreml",
        "--target",
        "executorch-mps",
    ]
    assert CliRunner().invoke(convert_command, [*command, "--out", str(tmp_path / "o")]).exit_code == 0
    expected = [row.sha256 for row in cidermill.Report.from_json(tmp_path / "o").artifacts]
    for name, model, inputs in [
        ("module", linear.train(), example),
        ("by name", linear, {"input": example[0]}),
        ("program", program, None),
        ("path", tmp_path / "net.pt", None),
        ("text", str(tmp_path / "net.pt"), example),
    ]:
        report = cidermill.convert(model, inputs, target=TARGETS, quant="int8", out=tmp_path / name)
        assert [row.sha256 for row in report.artifacts] == expected, name
        assert report == cidermill.Report.from_json(tmp_path / name), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_module_stays_as_it_was(network, tmp_path, dtype):
    network = network.to(dtype)
    network.out.eval()  # a part of its own mind
    before = state_of(network)
    inputs = (INPUTS[0], INPUTS[1].to(dtype))
    report = cidermill.convert(network, inputs, quant="int8", out=tmp_path / "out")
    after = state_of(network)
    assert report.verdict == "pass"
    assert before[1:] == after[1:]
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert [spec.dtype for spec in report.source.inputs] == ["int32", "float32"]


def test_a_program_stays_as_it_was(linear, tmp_path):
    program = torch.export.export(linear, (torch.zeros(1, 64),))
    before = str(program), {name: tensor.clone() for name, tensor in program.state_dict.items()}
    cidermill.convert(program, quant="int4", out=tmp_path / "out")
    assert str(program) == before[0] and hasattr(program, "_guards_code")
    assert all(torch.equal(tensor, program.state_dict[name]) for name, tensor in before[1].items())


@pytest.mark.parametrize(("given", "count"), [("a generator", 3), ("one dict", 1)])
def test_samples_of_any_kind(linear, tmp_path, given, count):
    sample = {"input": torch.ones(1, 64)}
    samples = sample if given == "one dict" else (sample for _ in range(count))
    report = cidermill.convert(linear, (torch.zeros(1, 64),), samples=samples, out=tmp_path / "out")
    assert (report.source.samples.kind, report.source.samples.count) == ("real", count)


def test_inputs_by_name_samples_and_options(network, tmp_path):
    inputs = dict(zip(("ids", "scale"), INPUTS))
    samples = [
        {"ids": torch.randint(50, (1, 8)), "scale": np.full((1, 8, 1), 0.5, np.float32)} for _ in range(3)
    ]
    report = cidermill.convert(
        network,
        inputs,
        samples=samples,
        device=["A14", "M2"],
        min_psnr=20,
        max_size="1MB",
        out=tmp_path / "out",
    )
    assert report.source.samples.kind == "real" and report.source.samples.count == 3
    assert [row.chip for row in report.artifacts[0].latency.devices] == ["A14", "M2"]
    assert [(row.limit, row.verdict) for row in report.artifacts[0].limits] == [
        ("max_size_bytes", "pass"), ("min_psnr_db", "pass"),
    ]  # fmt: skip
    assert [spec.name for spec in report.source.inputs] == ["ids", "scale"]


def test_inputs_in_the_words_of_the_command_line(linear, tmp_path):
    report = cidermill.convert(linear, input=["input:2x64"], out=tmp_path / "out")
    assert [(spec.name, spec.shape) for spec in report.source.inputs] == [("input", (2, 64))]


def test_modules_that_compute_otherwise_are_other_sources(linear):
    """Equal weights, and other functions between them."""
    other = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[2])
    sources = [source_of(model, (torch.zeros(1, 64),)).sha256 for model in (linear, other, linear)]
    assert sources[0] == sources[2] != sources[1]


def test_modules_whose_code_differs_are_other_sources():
    """Equal names, parts and weights; `forward` alone is another."""

    class Doubles(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4, bias=False)
            torch.nn.init.eye_(self.linear.weight)

        def forward(self, x):
            return self.linear(x) * 2

    class Net(Doubles):
        pass

    given = (torch.zeros(1, 4),)
    first = source_of(Net(), given).sha256
    assert first == source_of(Net(), given).sha256
    Doubles.forward = lambda self, x: self.linear(x) * 3  # of the base class
    assert first != source_of(Net(), given).sha256


def test_arrays_in_half_precision_for_a_half_precision_model(linear, tmp_path):
    report = cidermill.convert(linear.half(), (np.zeros((1, 64), np.float16),), out=tmp_path / "out")
    assert report.verdict == "pass"
    assert [spec.dtype for spec in report.source.inputs] == ["float32"]


def test_a_failed_verdict_is_a_report(linear, tmp_path):
    report = cidermill.convert(
        linear, (torch.zeros(1, 64),), quant="palettize1", min_psnr=60, out=tmp_path / "out"
    )
    assert report.verdict == "fail" and report.artifacts[0].path == "Sequential.mlpackage"


def test_results_go_where_the_command_puts_them(linear, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cidermill.convert(linear, (torch.zeros(1, 64),))
    assert (tmp_path / "Sequential-artifacts" / "Sequential.mlpackage").is_dir()
    torch.export.save(torch.export.export(linear, (torch.zeros(1, 64),)), "net.pt")
    cidermill.convert("net.pt")
    assert (tmp_path / "net-artifacts" / "report.json").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_pnsr": 40}, "did you mean min_psnr"),
        ({"device": ["iPhone 99"]}, "iPhone 99"),
        ({"quant": "int99"}, "integers of 99 bits"),
        ({"target": "windows"}, "windows"),
        ({"target": []}, "target names nothing"),
        ({"input": ["x:1x64"]}, "inputs and input"),
        ({"model_class": "module:Net"}, "model_class is for models in files"),
        ({"trust_pickle": True}, "trust_pickle is for models in files"),
        ({"min_psnr": -3}, "--min-psnr -3"),
        ({"min_psnr": "much"}, "much"),
        ({"samples": []}, "samples"),
        ({"samples": [{"y": np.zeros((1, 64))}]}, "samples[0] lacks input"),
        ({"inputs": (torch.zeros(1, 64), torch.zeros(1))}, "takes 1 inputs"),
        ({"inputs": {"x": "text"}}, "not a tensor"),
        ({"inputs": (torch.zeros(1, 3),)}, "does not run"),
        ({"inputs": None}, "does not say which shapes"),
        ({"dry_run": True}, "dry_run"),
        ({"out": "a\0b"}, "zero byte"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_is_written(linear, tmp_path, options, said):
    given = {"inputs": (torch.zeros(1, 64),), "out": tmp_path / "out", **options}
    with pytest.raises(cidermill.UserError) as caught:
        cidermill.convert(linear, **given)
    assert isinstance(caught.value, ValueError) and said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model(tmp_path):
    with pytest.raises(cidermill.UserError, match="is a int, which is no model"):
        cidermill.convert(3, out=tmp_path / "out")
    scripted = torch.jit.trace(torch.nn.ReLU(), torch.zeros(1))
    with pytest.raises(cidermill.UserError, match="torch.jit.save and give the path"):
        cidermill.convert(scripted, (torch.zeros(1),), out=tmp_path / "out")
    with pytest.raises(cidermill.UserError, match="does not exist"):
        cidermill.convert(tmp_path / "missing.pt")


def test_what_is_no_artifact_and_no_report(linear, tmp_path):
    cidermill.convert(linear, (torch.zeros(1, 64),), out=tmp_path / "out", cache=False)
    artifact = tmp_path / "out" / "Sequential.mlpackage"
    runner = cidermill.open_runner(artifact)
    for attempt in (
        lambda: cidermill.inspect(1),
        lambda: cidermill.validate(None, against=linear, inputs=(torch.zeros(1, 64),)),
        lambda: cidermill.open_runner(None),
        lambda: cidermill.Report.from_json(1),
        lambda: runner(None),
        lambda: runner("input"),
    ):
        with pytest.raises(cidermill.UserError, match="(?i)a (int|NoneType|str)"):
            attempt()


def test_a_module_that_is_quantized_or_has_no_weights(linear):
    quantized = torch.ao.quantization.quantize_dynamic(linear)
    with pytest.raises(cidermill.UserError, match="quantized already: 0 is a torch.ao.nn.quantized"):
        cidermill.convert(quantized, (torch.zeros(1, 64),))
    with pytest.raises(cidermill.UserError, match="meta device"):
        cidermill.convert(torch.nn.Linear(8, 4, device="meta"), (torch.zeros(1, 8),))


def test_python_and_the_command_line_use_the_same_words(linear, tmp_path):
    torch.export.save(torch.export.export(linear, (torch.zeros(1, 64),)), tmp_path / "net.pt")
    words = [str(tmp_path / "net.pt"), "--device", "iPhone 99"]
    with pytest.raises(cidermill.UserError) as caught:
        cidermill.convert(tmp_path / "net.pt", device="iPhone 99")
    said = " ".join(CliRunner().invoke(convert_command, words).stderr.split())
    assert caught.value.message in said and caught.value.hint in said


def test_an_artifact_is_validated_and_inspected(network, tmp_path):
    cidermill.convert(network, INPUTS, quant="int8", target=TARGETS, out=tmp_path / "o")
    for name in ("Network.mlpackage", "Network.pte"):
        loose = cidermill.validate(tmp_path / "o" / name, against=network, inputs=INPUTS, tolerance=20)
        assert loose.verdict == "pass" and loose.validation.conversion[0].output == "scores"
        with pytest.raises(cidermill.UserError, match="tolerence"):
            cidermill.validate(tmp_path / "o" / name, against=network, inputs=INPUTS, tolerence=20)
        inspection = cidermill.inspect(tmp_path / "o" / name, device="M2")
        assert inspection.placement.chip == "M2" and inspection.size_bytes > 0
    command = ["inspect", str(tmp_path / "o" / "Network.pte"), "--device", "M2", "--json"]
    assert to_builtins(inspection) == json.loads(CliRunner().invoke(main, command).stdout)


def of_the_process():
    streams = sys.stdout, sys.stderr, tempfile.gettempdir, tempfile.gettempdir()
    return *streams, list(warnings.filters), os.getcwd(), dict(os.environ), logging.root.manager.disable


def test_two_threads_at_once(linear, tmp_path, capfd):
    """Equal bytes, and nothing that belongs to the process is left changed."""
    other = torch.nn.Sequential(torch.nn.Conv1d(64, 64, 1), torch.nn.ReLU())
    jobs = [
        (model, (torch.zeros(shape),), quant, name)
        for name, model, shape in (("a", linear, (1, 64)), ("b", other, (1, 64, 9)))
        for quant in ("int8", "palettize4")
    ]
    before = of_the_process()

    def digests(folder):
        def one(job):
            model, inputs, quant, name = job
            out = tmp_path / folder / f"{name}-{quant}"
            report = cidermill.convert(model, inputs, target=TARGETS, quant=quant, out=out)
            return [artifact.sha256 for artifact in report.artifacts]

        return one

    alone = list(map(digests("alone"), jobs))
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(digests("together"), jobs))
    assert alone == together and len({digest for row in alone for digest in row}) == 8
    assert before == of_the_process()
    assert capfd.readouterr() == ("", "")


def test_the_import_is_light():
    script = """
import sys
import cidermill
assert {"convert", "validate", "inspect", "open_runner", "Report", "UserError"} <= set(dir(cidermill))
assert not {"torch", "coremltools", "numpy", "executorch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_process_of_its_own_prints_nothing(tmp_path):
    """Each library says what it has to say once in a process, when it is imported: pytest has imported them
    already."""
    script = """
import torch, cidermill
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh())
inputs = (torch.zeros(1, 64),)
cidermill.convert(net, inputs, target=["coreml", "executorch-mps"], out="out", cache=False)
for name in ("Sequential.mlpackage", "Sequential.pte"):
    cidermill.inspect(f"out/{name}")
    assert cidermill.validate(f"out/{name}", against=net, inputs=inputs).verdict == "pass"
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_names_that_are_none():
    with pytest.raises(AttributeError, match="no attribute 'press'"):
        cidermill.press  # noqa: B018
    assert cidermill.open_runner.__name__ == "open_runner" and Path(cidermill.__file__).name == "__init__.py"


def test_the_callers_autocast_device_and_random_numbers_take_no_part(linear, tmp_path):
    inputs = (torch.ones(1, 64),)
    usual = cidermill.convert(linear, inputs, out=tmp_path / "usual")
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        report = cidermill.convert(linear, inputs, out=tmp_path / "other")
    assert np.array_equal(np.random.rand(3), expected)
    assert report.artifacts[0].sha256 == usual.artifacts[0].sha256
    assert report.artifacts[0].validation == usual.artifacts[0].validation


def test_no_file_is_left_open(linear, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        cidermill.convert(linear, (torch.ones(1, 64),), quant="int8", out=tmp_path / "out")
        gc.collect()
    assert not [str(warning.message) for warning in caught if "weight.bin" in str(warning.message)]


def test_samples_are_no_single_array(linear, tmp_path):
    for samples in (np.zeros((4, 64), np.float32), torch.zeros(4, 64)):
        with pytest.raises(cidermill.UserError, match=r"one array of shape \(4, 64\), not a list"):
            cidermill.convert(linear, (torch.ones(1, 64),), samples=samples, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_no_buffer_and_changes(tmp_path):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = torch.zeros(64)

        def forward(self, x):
            return x + self.calls.add_(1)

    with pytest.raises(cidermill.UserError, match="changes its own state while it runs: a tensor that is no"):
        cidermill.convert(Counter(), (torch.ones(1, 64),), out=tmp_path / "out")


def test_a_number_beyond_all_floats(linear, tmp_path):
    with pytest.raises(cidermill.UserError, match="min_psnr is too large a number"):
        cidermill.convert(linear, (torch.ones(1, 64),), min_psnr=10**400, out=tmp_path / "out")


def test_a_module_that_keeps_what_it_has_computed(tmp_path):
    """torch.nn.utils.weight_norm leaves the weight of the last call on the module, with its history."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = torch.nn.utils.weight_norm(torch.nn.Conv1d(4, 8, 3))
    net(torch.randn(1, 4, 16))
    assert not net.weight.is_leaf
    report = cidermill.convert(net, (torch.randn(1, 4, 16),), out=tmp_path / "out", cache=False)
    assert report.verdict == "pass"
