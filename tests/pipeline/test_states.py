"""Models that change their buffers, from the command line and from Python: what the saved artifacts give from
call to call, against the model itself."""

import copy
import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cidermill
from cidermill.pipeline.commands.cli import convert, main
from cidermill.pipeline.in_a_row import APART, Course, in_a_row
from cidermill.pipeline.judge import judge_validation
from cidermill.validation.mil.state_notes import state_notes

NAMES = ("accumulator", "cache", "stream", "window", "recurrent", "started", "placed")
README = Path(__file__).resolve().parents[2] / "README.md"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def decibels(want, have):
    want, have = np.asarray(want, np.float64), np.asarray(have, np.float64)
    error = np.sqrt(np.mean((want - have) ** 2))
    return np.inf if error == 0 else 20 * np.log10(np.abs(want).max() / error)


def answers_of(model, inputs):
    """What a copy of the model gives from call to call, and its buffers after the last."""
    own = copy.deepcopy(model)
    with torch.no_grad():
        answers = [
            [leaf.clone().numpy() for leaf in torch.utils._pytree.tree_leaves(own(**batch))]
            for batch in inputs
        ]
    return answers, {name.replace(".", "_"): value.numpy() for name, value in own.named_buffers()}


def arrays(batch):
    return {
        name: tensor.numpy().astype(np.int32 if tensor.dtype == torch.long else np.float32)
        for name, tensor in batch.items()
    }


@pytest.fixture(scope="module")
def made(stateful, tmp_path_factory):
    """(name, io) -> the folder of artifacts, made once."""
    folders = {}

    def make(name, io):
        key = name, io
        if key not in folders:
            folder = tmp_path_factory.mktemp(name) / "out"
            options = {"state": "io", "target": ["coreml", "executorch-mps"]} if io else {}
            inputs = stateful.calls(name, 4)
            report = cidermill.convert(
                stateful.stateful(name),
                inputs[0],
                samples=inputs,
                out=folder,
                device=["A14"],
                cache=False,
                **options,
            )
            folders[key] = folder, report
        return folders[key]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_package_goes_on_from_its_own_state(made, stateful, name, ct):
    folder, report = made(name, False)
    assert report.verdict == "pass", report.why_failed
    (package,) = folder.glob("*.mlpackage")
    inputs = stateful.calls(name, 20, seed=7)
    wanted, final = answers_of(stateful.stateful(name), inputs)
    runner = cidermill.open_runner(package, host="reference")
    state = runner.make_state()
    got = [list(runner(arrays(batch), state=state).values()) for batch in inputs]
    for outputs in zip(zip(*wanted), zip(*got), strict=True):
        want, have = map(np.stack, outputs)
        assert np.array_equal(want, have) if want.dtype.kind in "bi" else decibels(want, have) > 40
    described = ct.utils.load_spec(str(package / MODEL)).description
    held = {entry.name: tuple(entry.type.stateType.arrayType.shape) for entry in described.state}
    assert held.keys() - {"started"} == final.keys()
    for buffer, value in final.items():
        if value.dtype == np.float32:
            assert held[buffer] == value.shape
            assert decibels(value, state[buffer].numpy()) > 40
    assert [entry.name for entry in described.input] == list(inputs[0])


@pytest.mark.parametrize("name", NAMES)
def test_state_as_inputs_and_outputs_on_both_targets(made, stateful, name):
    folder, report = made(name, True)
    assert report.verdict == "pass", report.why_failed
    inputs = stateful.calls(name, 6, seed=7)
    model = stateful.stateful(name)
    wanted, final = answers_of(model, inputs)
    for artifact in report.artifacts:
        runner = cidermill.open_runner(folder / artifact.path, host="reference")
        assert not runner.states
        held = {
            buffer.replace(".", "_"): value.numpy().astype(
                np.int32 if value.dtype == torch.long else value.numpy().dtype
            )
            for buffer, value in model.named_buffers()
        }
        assert {value.name for value in runner.inputs} == {*inputs[0], *held}
        got = []
        for batch in inputs:
            answer = runner({**arrays(batch), **held})
            held = {buffer: answer.pop(f"{buffer}_out").reshape(np.shape(held[buffer])) for buffer in held}
            got.append(list(answer.values()))
        for outputs in zip(zip(*wanted), zip(*got), strict=True):
            want, have = map(np.stack, outputs)
            have = have.reshape(want.shape)
            assert np.array_equal(want, have) if want.dtype.kind in "bi" else decibels(want, have) > 40
        for buffer, value in final.items():
            assert decibels(value, held[buffer]) > 40


def test_the_report_tells_of_states(made):
    folder, report = made("cache", False)
    content = json.loads((folder / "report.json").read_text())
    assert [state["name"] for state in content["source"]["states"]] == ["keys", "values", "position"]
    assert [spec["name"] for spec in content["source"]["inputs"]] == ["x"]
    assert [spec["name"] for spec in content["source"]["outputs"]] == ["output"]
    row = content["artifacts"][0]["validation"]["in_a_row"]
    assert (row["calls"], row["apart"]) == (20, True)
    assert [error["output"] for error in row["conversion"]] == ["output", "keys", "values", "position"]
    assert cidermill.Report.from_json(folder) == report
    assert "From call to call" in (folder / "report.html").read_text()


def test_integers_and_what_is_made_for_states_suit_the_neural_engine(made, stateful):
    folder, _ = made("started", False)
    inspection = cidermill.inspect(next(folder.glob("*.mlpackage")), device=["A14"])
    shapes = {value.name: value.shape for value in inspection.states}
    assert shapes == {"mean": (1, 32), "left": (32,), "lowest": (2, 32), "first": (32,), "started": (32,)}


def test_a_count_beyond_what_half_precision_counts(tmp_path):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.tensor([-3_000_000], dtype=torch.int32))

        def forward(self, x):
            self.count += 1_048_577
            return x * 2, self.count

    report = cidermill.convert(
        Counter(), (torch.ones(1, 4) / 3,), out=tmp_path / "out", device=["A14"], cache=False
    )
    runner = cidermill.open_runner(tmp_path / "out" / report.artifacts[0].path, host="reference")
    state = runner.make_state()
    counts = [int(list(runner([np.ones((1, 4), np.float32)], state=state).values())[1][0]) for _ in range(6)]
    assert counts == [-3_000_000 + 1_048_577 * call for call in range(1, 7)]


# What goes wrong


@pytest.fixture(scope="module")
def saved(stateful, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "stream.pt"
    program = torch.export.export(stateful.stateful("stream"), (), stateful.calls("stream")[0])
    torch.export.save(program, path)
    return path


def command(path, out, *options):
    return CliRunner().invoke(convert, [str(path), "--out", str(out), "--no-cache", *options])


def test_systems_before_states(saved, tmp_path):
    result = command(saved, tmp_path / "out", "--deployment-target", "macOS14")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "The model changes buffers while it runs (ring_past), and macOS14 has no states" in result.output
    assert "--deployment-target iOS18 (or later), or --state io" in result.output
    assert command(saved, tmp_path / "out", "--deployment-target", "macOS14", "--state", "io").exit_code == 0


def test_several_sizes(stateful, tmp_path):
    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(1, 1))

        def forward(self, x):
            self.total += x.sum(-1, keepdim=True)
            return x * self.total

    dynamic = {"x": {1: torch.export.Dim("length", min=2, max=64)}}
    program = torch.export.export(Sum(), (), {"x": torch.ones(1, 32)}, dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "sum.pt")
    result = command(tmp_path / "sum.pt", tmp_path / "out", "--input", "x:1x16,32")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "(total), and such a model serves one size" in " ".join(result.output.split())
    assert command(tmp_path / "sum.pt", tmp_path / "out", "--input", "x:1x16").exit_code == 0


def test_a_choice_that_there_is_not(saved, tmp_path):
    result = command(saved, tmp_path / "out", "--state", "both")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    with pytest.raises(cidermill.UserError, match="both"):
        cidermill.convert(saved, state="both", out=tmp_path / "out")


def test_executorch_says_what_it_does_with_state(saved, tmp_path):
    result = command(saved, tmp_path / "out", "--target", "executorch-mps")
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert (
        "keep no state: what the model changes are inputs and outputs (ring_past and ring_past_out)" in words
    )


def test_another_name_for_a_state(saved, tmp_path, ct):
    options = ["--name", "ring_past=memory", "--metadata", "describe.memory=The last samples"]
    assert command(saved, tmp_path / "out", *options).exit_code == 0
    (state,) = ct.utils.load_spec(str(tmp_path / "out/stream.mlpackage" / MODEL)).description.state
    assert (state.name, state.shortDescription) == ("memory", "The last samples")


def broken(package, folder):
    """The package, whose program no longer writes its state."""
    from coremltools.proto import Model_pb2

    copied = shutil.copytree(package, folder / "broken.mlpackage")
    model = Model_pb2.Model()
    model.ParseFromString((copied / MODEL).read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    (update,) = [operation for operation in block.operations if operation.type == "write_state"]
    block.operations.remove(update)
    (copied / MODEL).write_bytes(model.SerializeToString())
    return copied


def test_a_package_that_forgets_fails(saved, tmp_path):
    assert command(saved, tmp_path / "out").exit_code == 0
    package = tmp_path / "out/stream.mlpackage"
    assert cidermill.validate(package, saved).verdict == "pass"
    comparison = cidermill.validate(broken(package, tmp_path), saved)
    assert comparison.verdict == "fail"
    assert any("over 20 calls in a row" in warning for warning in comparison.warnings)
    result = CliRunner().invoke(main, ["validate", str(package), "--against", str(saved)])
    assert result.exit_code == 0
    assert "20 calls in a row, each from the state before" in " ".join(result.output.split())


def test_states_that_disturb_each_other_fail(saved, monkeypatch):
    from cidermill.models.calls import Calls

    shared = {"sum": 0.0}

    def session(runner, states, call):
        alone = {"sum": 0.0}

        def following(batch):
            held = shared if runner.shares else alone
            held["sum"] = held["sum"] * 0.5 + float(batch["x"][0])
            return {"y": np.array([held["sum"]])}

        shared["sum"] = 0.0
        return following, {}

    monkeypatch.setattr("cidermill.validation.states.session", session)
    own, common = (SimpleNamespace(states=("sum",), shares=shares) for shares in (False, True))
    inputs = tuple({"x": np.array([index + 1.0])} for index in range(20))
    following, _ = session(own, (), None)
    calls = Calls(inputs, tuple(following(batch) for batch in inputs), {})
    course = Course((), calls, calls)
    assert in_a_row(own, None, course).apart
    row = in_a_row(common, None, course)
    assert not row.apart and len(inputs) > APART
    validation = SimpleNamespace(conversion=row.conversion, compression=(), tolerance_db=40.0, in_a_row=row)
    judgement = judge_validation(validation, None)
    assert judgement.verdict == "fail" and "Two states disturb each other" in judgement.advice[0]


def test_a_package_with_other_states(made, saved, tmp_path):
    folder, _ = made("recurrent", False)
    with pytest.raises(cidermill.UserError, match=r"other states than the model: hidden \[1, 32\]"):
        cidermill.validate(next(folder.glob("*.mlpackage")), saved)


def test_what_devices_are_known_to_refuse():
    from cidermill.validation.graph import Value

    narrow = Value("past", "float16", (1, 4, 4))
    (note,) = state_notes([narrow], [Value("x", "float32", (1, 4))])
    assert "state past [1, 4, 4] is no multiple of 32" in note and "2631" in note
    many = [Value(f"layer{index}", "float16", (1, 64)) for index in range(9)]
    (note,) = state_notes(many, [])
    assert note.startswith("The model has 9 states")
    (note,) = state_notes(many[:1], [Value("ids", "int32", (1, None))])
    assert "flexible size (ids)" in note
    assert not state_notes(many[:1], [Value("x", "float32", (1, 4))]) and not state_notes([], [])


def test_a_warning_names_the_width(saved, tmp_path):
    result = command(saved, tmp_path / "out")
    assert "ring_past [1, 4, 4] is no multiple of 32" in " ".join(result.output.split())


def test_the_command_of_the_readme(saved, tmp_path, monkeypatch):
    (line,) = [line for line in README.read_text().splitlines() if " --state auto" in line]
    words = shlex.split(line)
    assert words[:3] == ["cidermill", "convert", "stream.pt"]
    assert command(saved, tmp_path / "out", *words[3:]).exit_code == 0
    assert cidermill.open_runner(tmp_path / "out/stream.mlpackage", host="reference").states


def test_tuning_takes_no_model_with_state(saved, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((2, 1, 4, 10), np.float32))
    arguments = ["tune", str(saved), "--recipe", "int4", "--data", str(tmp_path / "data.npz")]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "tuned.pt2")])
    assert result.exit_code == 2 and not (tmp_path / "tuned.pt2").exists()
    assert "changes buffers while it runs (ring_past), and tuning takes no such model" in result.output


def test_what_is_foreseen(saved, tmp_path):
    refused = command(saved, tmp_path / "out", "--dry-run", "--deployment-target", "iOS16")
    assert refused.exit_code == 2 and "iOS16 has no states" in refused.output
    assert command(saved, tmp_path / "out", "--dry-run").exit_code == 0


def test_a_difference_of_states(made, tmp_path):
    one, other = (next(made("recurrent", io)[0].glob("*.mlpackage")) for io in (False, True))
    result = CliRunner().invoke(main, ["diff", str(one), str(other), "--json"])
    changes = json.loads(result.output)["artifacts"][0]["changes"]["interface"]
    named = {(change["kind"], change["name"]): (change["a"], change["b"]) for change in changes}
    assert named["states", "hidden"] == ("float16 1x32", None)
    assert named["inputs", "hidden"] == (None, "float32 1x32")


def test_a_study_of_a_model_with_state(saved, tmp_path):
    arguments = ["study", str(saved), "--recipes", "float16,int8", "--out", str(tmp_path / "study")]
    result = CliRunner().invoke(main, [*arguments, "--device", "A14", "--no-cache", "--workers", "1"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "study/study.jsonl").read_text().splitlines()[1:]]
    done = [row for row in rows if row.get("state") == "done"]
    assert len(done) == 2 and all(row["verdict"] == "pass" for row in done)


def executorch_program(stateful, name, path):
    """As ExecuTorch itself writes a model: its buffers are the program's own, without names."""
    from executorch.exir import to_edge

    with torch.no_grad():
        model = stateful.stateful(name).requires_grad_(False)
        program = torch.export.export(model, (), stateful.calls(name)[0])
        path.write_bytes(to_edge(program).to_executorch().buffer)
    torch.export.save(program, path.with_suffix(".pt2"))
    return path


def test_executorch_programs_of_others(stateful, tmp_path):
    program = executorch_program(stateful, "cache", tmp_path / "cache.pte")
    comparison = cidermill.validate(program, tmp_path / "cache.pt2")
    assert comparison.verdict == "pass", comparison.why_failed
    row = comparison.validation.in_a_row
    assert (row.calls, row.apart, row.kept) == (20, True, True)
    assert comparison.validation.conversion == row.conversion  # its states have no names to be set by
    # ExecuTorch starts every buffer at zero
    program = executorch_program(stateful, "started", tmp_path / "started.pte")
    assert cidermill.validate(program, tmp_path / "started.pt2").verdict == "fail"


def test_a_bundle_of_a_package_with_states_and_a_program_without(saved, tmp_path):
    targets = ["--target", "coreml", "--target", "executorch-mps"]
    assert command(saved, tmp_path / "out", *targets).exit_code == 0
    arguments = ["bundle", str(tmp_path / "out"), "--out", str(tmp_path / "bundle")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    models = json.loads((tmp_path / "bundle/manifest.json").read_text())["models"]
    takes = [[entry["name"] for entry in model["inputs"]] for model in models]
    assert takes == [["x"], ["x", "ring_past"]]  # one Swift type cannot call both
    assert [state["name"] for state in models[0]["states"]] == ["ring_past"]
