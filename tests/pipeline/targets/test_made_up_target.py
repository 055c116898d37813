"""A third target is one file: here `npz`, an archive of weights beside the program that uses them, with the
reader that runs it. What converts, proves, reports, locks and studies is not told of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill.converters.artifact import Realised, WrittenArtifact
from cidermill.models.digest import content_of
from cidermill.models.errors import UserError
from cidermill.models.extras import EXTRAS
from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.plan import Plan, plan_from
from cidermill.pipeline.run import run
from cidermill.pipeline.study.plan import StudyPlan, Subject
from cidermill.pipeline.study.presets import parse_recipes
from cidermill.pipeline.study.study import run_study
from cidermill.pipeline.targets import TARGETS, find_target
from cidermill.pipeline.targets.target import Cost, Refusal, Target
from cidermill.pipeline.terminal.report import progress, show_report
from cidermill.validation.graph import Graph, Node, Ref, Value
from cidermill.validation.runner import Opening, Runner
from cidermill.validation.runners import FORMATS, Format, open_runner

PROGRAM = "program.pt2"  # a member of the archive beside the weights


def write(compressed, path, deployment_target, templates, about, step):
    program, stored = compressed.captured.program, io.BytesIO()
    torch.export.save(program, stored)
    weights = {name: tensor.detach().numpy() for name, tensor in program.state_dict.items()}
    weights |= {name: weight.dense().half().numpy() for name, weight in compressed.weights.items()}
    np.savez(path, **weights, **{PROGRAM: np.frombuffer(stored.getvalue(), np.uint8)})
    realised = {name: Realised("float16", 16.0, "npz stores no codes") for name in compressed.weights}
    recipe = compressed.recipe.name
    return WrittenArtifact("npz", recipe, path, *content_of(path), "float32", (), realised)


def footprint(form, name, recipe, deployment_target):
    return 16 * form.values.codes.numel(), 0.0


def graph_bytes(captured, recipe, dense_bytes):
    return 2 * dense_bytes + 20_000  # the program holds the weights once more, in float32


def place(graph, devices, compute_units, barred):
    """The whole program as one kernel on the CPU, by the estimate of ExecuTorch's."""
    return find_target("executorch-mps").place(graph, devices, compute_units, barred)


def read(path: Path, opening: Opening) -> Runner:
    archive = np.load(path)
    program = torch.export.load(io.BytesIO(archive[PROGRAM].tobytes()))
    weights = {name: torch.from_numpy(archive[name]) for name in archive.files if name != PROGRAM}
    module = program.module()
    module.load_state_dict(weights, strict=False)
    declared = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    inputs, outputs, stored = (
        tuple(Value(name, str(tensors[name].dtype)[6:], tuple(tensors[name].shape)) for name in names)
        for names, tensors in (
            (program.graph_signature.user_inputs, declared),
            (program.graph_signature.user_outputs, declared),
            (weights, weights),
        )
    )
    arguments = {"inputs": [Ref(value.name) for value in inputs], "weights": [Ref(name) for name in weights]}
    graph = Graph(
        inputs,
        tuple(value.name for value in outputs),
        (Node("torch_program", arguments, outputs),),
        weights,
        {value.name: value for value in (*inputs, *outputs, *stored)},
    )

    def answer(tensors, tap, state):
        results = module(*(tensors[value.name] for value in inputs))
        results = results if isinstance(results, tuple) else (results,)
        return {value.name: result.detach().numpy() for value, result in zip(outputs, results)}

    return Runner(path, "reference", inputs, outputs, graph, "float32", answer)


NPZ = Target(
    name="npz",
    title="NumPy archive",
    short="npz",
    suffix=".npz",
    runtime="npz",
    libraries=("numpy",),
    cost=Cost(captures=0.1, seconds_per_mb=0.01, copies=1.0),
    write=write,
    footprint=footprint,
    graph_bytes=graph_bytes,
    place=place,
    no_plan="not run: an archive runs nowhere",
    refused={
        "min_ane_share": Refusal("--min-ane-share is of Core ML: an archive runs nowhere.", "Leave it out."),
        "compute_units": Refusal(
            "--compute-units {value} is of Core ML; {artifact} is none.", "Leave it out."
        ),
    },
)
NPZ_FORMAT = Format(
    ".npz",
    title="an .npz archive",
    sign="an archive (no PK at byte 0)",
    recognises=lambda path, head: head[:2] == b"PK",
    has_runtime=lambda: False,
    native=read,
    reference=read,
    parse=lambda path: (None, [read(path, Opening()).graph]),
)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A network, and the target among the others."""
    monkeypatch.setitem(TARGETS, NPZ.name, NPZ)
    monkeypatch.setitem(FORMATS, NPZ_FORMAT.suffix, NPZ_FORMAT)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(4, 32),)), tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def test_a_conversion_to_it_is_proved_reported_and_shown(model, tmp_path, capsys):
    out = tmp_path / "out"
    options = {"target": ["npz", "coreml"], "quant": "int8", "out": out, "min_psnr": 30, "cache": False}
    plan = plan_from(model, options)
    with progress(False) as show:
        report = run(plan, show)
    section = json.loads((out / "report.json").read_text())["artifacts"][0]
    assert (section["target"], section["path"], section["verdict"]) == ("npz", "net.npz", "pass")
    assert section["validation"]["runner"] == "reference"
    assert section["validation"]["conversion"][0]["psnr_db"] > 60
    assert section["validation"]["compression"][0]["psnr_db"] > 30
    weights = {entry["name"]: entry for entry in section["compression"]["weights"]}
    assert weights["0.weight"]["decoded"] == "equal"
    assert weights["0.weight"]["reason"] == "npz stores no codes"
    assert sum(section["compression"]["bytes"].values()) == section["size_bytes"]
    assert section["placement"]["units"]["cpu"]["share"] == 1
    assert section["latency"]["devices"][0]["ms"] > 0
    assert section["predicted"]["size_bytes"] == pytest.approx(section["size_bytes"], rel=0.5)
    assert "net.npz" in (out / "report.html").read_text()
    show_report(report, out)
    assert "npz" in capsys.readouterr().out


def test_its_artifact_is_inspected_validated_locked_and_compared(model, tmp_path):
    def cidermill(*arguments):
        return CliRunner().invoke(main, list(map(str, arguments)))

    out, lock = tmp_path / "out", tmp_path / "lock.json"
    with progress(False) as show:
        run(plan_from(model, {"target": "npz", "quant": "int8", "out": out, "cache": False}), show)
    assert open_runner(out / "net.npz").kind == "reference"
    inspected = cidermill("inspect", out / "net.npz", "--json")
    assert inspected.exit_code == 0, inspected.output
    assert json.loads(inspected.stdout)["target"] == "npz"
    refused = cidermill("inspect", out / "net.npz", "--compute-units", "cpu_only")
    assert refused.exit_code == 2
    assert "--compute-units cpu_only is of Core ML; net.npz is none." in refused.output
    for arguments in (
        ("validate", out / "net.npz", "--against", model, "--tolerance", 20),
        ("check", out, "--lock", lock, "--update"),
        ("check", out, "--lock", lock),
        ("diff", out, out),
        ("diff", out / "net.npz", out / "net.npz"),
    ):
        result = cidermill(*arguments)
        assert result.exit_code == 0, result.output


def test_it_is_studied(model, tmp_path):
    subject = Subject(model, cache=False)
    plan = StudyPlan(
        (subject,), tmp_path / "study", parse_recipes("int8,float16"), ("npz", "coreml"), workers=1
    )
    with progress(False) as show:
        run_study(plan, show)
    journal = (tmp_path / "study" / "study.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, journal) if row.get("target") == "npz"]
    assert [(row["state"], row["verdict"], row["ane_share"]) for row in rows] == [("done", "pass", 0.0)] * 2
    assert all("-npz/report.html" in row["report"] for row in rows)


def test_what_does_not_hold_for_it_is_refused_in_its_words(model):
    with pytest.raises(UserError, match="an archive runs nowhere"):
        Plan(model, ("npz",), min_ane_share=0.9)
    Plan(model, ("npz", "coreml"), min_ane_share=0.9)  # it holds for one of them
    with pytest.raises(UserError, match="Unknown target 'npy'") as error:
        Plan(model, ("npy",))
    assert error.value.hint == "The targets are coreml and executorch-mps and npz."


def test_a_missing_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(EXTRAS, "archives", ("no_such_package",))
    monkeypatch.setitem(TARGETS, "npz", replace(NPZ, extra="archives"))
    with pytest.raises(UserError, match="--target npz needs the package no_such_package") as error:
        Plan(model, ("npz",))
    assert error.value.hint == 'Install it: pip install "cidermill[archives]"'
