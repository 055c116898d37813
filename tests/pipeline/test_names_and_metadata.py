"""What an app sees of a model's names and metadata: read back from the saved artifacts with the libraries of
those who made the formats."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill import inspect, open_runner, validate
from cidermill.models.capture import capture
from cidermill.models.load import load
from cidermill.models.naming import renamed
from cidermill.models.samples import synthetic
from cidermill.pipeline.build.config import read_config
from cidermill.pipeline.commands.cli import convert, main
from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.run import run

README = Path(__file__).resolve().parents[2] / "README.md"
OPTIONS = """
    --name x=relu --name mask=linear_weight --name total=linear
    --metadata author="Jane Doe" --metadata license=MIT --metadata "description=Sums of rows"
    --metadata version=2.1 --metadata store.page=https://example.org/?a=b
    --metadata "describe.relu=Eight numbers" --metadata describe.linear=Sums
"""
COREMLTOOLS = "com.github.apple.coremltools"
KEYS = [  # of userDefined where nothing is asked for
    *(f"cidermill.{key}" for key in ("modules", "recipe", "version")),
    *(f"{COREMLTOOLS}.{key}" for key in ("source", "source_dialect", "version")),
]


class Net(torch.nn.Module):
    """Its operators have the names that the inputs and outputs of the test get."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 64)

    def forward(self, x, mask):
        rows = self.linear(x).relu() * mask
        return {"rows": rows, "total": rows.sum(-1)}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def model(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    example = {"x": torch.randn(2, 8), "mask": torch.rand(2, 64)}
    torch.export.save(torch.export.export(net, (), example), folder / "net.pt2")
    numbers = np.random.default_rng(0)
    np.savez(
        folder / "samples.npz",
        x=numbers.standard_normal((3, 2, 8)).astype(np.float32),
        mask=numbers.random((3, 2, 64)).astype(np.float32),
    )
    return folder / "net.pt2"


def command(model, out, options, code=0):
    result = CliRunner().invoke(convert, [str(model), "--out", str(out), *shlex.split(options)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """-> the folder of both artifacts under other names. The samples have the model's own."""
    out = tmp_path_factory.mktemp("made") / "out"
    samples = model.with_name("samples.npz")
    command(
        model,
        out,
        f"{OPTIONS} --samples {samples} --quant int8 --target coreml --target executorch-mps --no-cache",
    )
    return out


def description(package, ct):
    # of the file: coremltools writes into a package that it reads
    return ct.utils.load_spec(str(package / "Data/com.apple.CoreML/model.mlmodel")).description


def features(described):
    return [feature.name for feature in described.input], [feature.name for feature in described.output]


def userdefined(described):
    return dict(described.metadata.userDefined)


def test_a_package_has_the_new_names_and_what_it_was_told(made, ct):
    described = description(made / "net.mlpackage", ct)
    assert features(described) == (["relu", "linear_weight"], ["rows", "linear"])
    told = described.metadata
    assert (told.author, told.license, told.shortDescription, told.versionString) == (
        "Jane Doe", "MIT", "Sums of rows", "2.1",
    )  # fmt: skip
    texts = {entry.name: entry.shortDescription for entry in (*described.input, *described.output)}
    assert texts == {"relu": "Eight numbers", "linear_weight": "", "rows": "", "linear": "Sums"}
    own = userdefined(described)
    assert own["store.page"] == "https://example.org/?a=b" and sorted(own) == sorted([*KEYS, "store.page"])


def test_a_program_of_executorch_has_the_new_names(made):
    from executorch.exir._serialize._program import deserialize_pte_binary

    plans = deserialize_pte_binary((made / "net.pte").read_bytes()).program.execution_plan
    texts = {plan.name: [plan.values[index].val.string_val for index in plan.outputs] for plan in plans[1:]}
    assert texts == {"cidermill_inputs": ["relu", "linear_weight"], "cidermill_outputs": ["rows", "linear"]}


@pytest.mark.parametrize("name", ["net.mlpackage", "net.pte"])
def test_it_computes_the_same_under_the_new_names(made, net, name):
    x, mask = torch.randn(2, 8), torch.rand(2, 64)
    answers = open_runner(made / name, host="reference")({"relu": x, "linear_weight": mask})
    source = net(x, mask)
    for new, old in (("rows", "rows"), ("linear", "total")):
        error = np.abs(answers[new] - source[old].detach().numpy()).max()
        assert error < 0.01 * source[old].abs().max()  # int8


def test_report_and_page_speak_of_the_new_names(made):
    report = json.loads((made / "report.json").read_text())
    assert report["verdict"] == "pass" and report["source"]["samples"]["kind"] == "real"
    assert [spec["name"] for spec in report["source"]["inputs"]] == ["relu", "linear_weight"]
    assert [spec["name"] for spec in report["source"]["outputs"]] == ["rows", "linear"]
    for artifact in report["artifacts"]:
        outputs = [error["output"] for error in artifact["validation"]["conversion"]]
        assert outputs == ["rows", "linear"]
    warnings = [artifact["warnings"] for artifact in report["artifacts"]]
    sentence = "ExecuTorch MPS has no place for metadata: what --metadata says is not in this artifact."
    assert sentence not in warnings[0] and sentence in warnings[1]


def test_inspect_shows_them(made):
    package, program = inspect(made / "net.mlpackage"), inspect(made / "net.pte")
    for inspection in (package, program):
        assert [value.name for value in inspection.inputs] == ["relu", "linear_weight"]
        assert [value.name for value in inspection.outputs] == ["rows", "linear"]
    expected = {
        "author": "Jane Doe", "license": "MIT", "description": "Sums of rows", "version": "2.1",
        "store.page": "https://example.org/?a=b", "describe.relu": "Eight numbers", "describe.linear": "Sums",
        "cidermill.recipe": "int8",
    }  # fmt: skip
    assert expected.items() <= package.metadata.items()
    assert "cidermill.modules" not in package.metadata and program.metadata == {}


@pytest.mark.parametrize("name", ["net.mlpackage", "net.pte"])
def test_validate_maps_between_the_names(made, model, name):
    samples = str(model.with_name("samples.npz"))
    comparison = validate(made / name, against=model, samples=samples, tolerance=30)
    assert comparison.verdict == "pass"
    assert [error.output for error in comparison.validation.conversion] == ["rows", "total"]


def test_a_bundle_takes_the_new_names(made, tmp_path):
    result = CliRunner().invoke(main, ["bundle", str(made), "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    swift = "".join(file.read_text() for file in (tmp_path / "bundle").rglob("*.swift"))
    assert 'ModelFeature(name: "relu"' in swift and 'ModelFeature(name: "linear"' in swift
    assert "relu: relu, linear_weight: linear_weight" in swift


def test_without_the_options_a_package_is_as_before(model, tmp_path, ct):
    run(plan_from(model, {"out": tmp_path / "out", "cache": False}))
    described = description(tmp_path / "out/net.mlpackage", ct)
    assert features(described) == (["x", "mask"], ["rows", "total"])
    assert sorted(userdefined(described)) == KEYS
    told = described.metadata
    assert not any((told.author, told.license, told.shortDescription, told.versionString))


REFUSED = {
    "no =": ("--name x", "--name 'x' does not say which name becomes which"),
    "no old name": ("--name =y", "--name '=y' does not say which name becomes which"),
    "an unknown name": ("--name y=image", "the model has no input or output 'y'", "inputs are x, mask"),
    "the name of another": ("--name x=mask", "an input or output is called 'mask' already"),
    "the name of an output": ("--name x=rows", "an input or output is called 'rows' already"),
    "places changed": ("--name x=mask --name mask=x", "an input or output is called 'mask' already"),
    "its own name": ("--name x=x", "an input or output is called 'x' already"),
    "twice the same": ("--name x=a --name mask=a", "'a' is given twice"),
    "two for one": ("--name x=a --name x=b", "'x' is renamed twice"),
    "a digit first": ("--name x=1a", "'1a' is no name that Core ML and Swift can use"),
    "nothing": ("--name x=", "'' is no name that Core ML and Swift can use"),
    "other letters": ("--name x=größe", "'größe' is no name"),
    "a line end": ("--name 'x=a\n'", "is no name that Core ML and Swift can use"),
    "a word of Swift": ("--name x=class", "'class' is a word of Swift"),
    "a word of Python": ("--name x=lambda", "'lambda' is a word of Python"),
    "a word of Core ML": ("--name x=state", "'state' is a word of Core ML"),
    "metadata without =": ("--metadata author", "--metadata 'author' is no KEY=VALUE"),
    "no key": ("--metadata =Jane", "--metadata '=Jane' is no KEY=VALUE"),
    "our key": ("--metadata cidermill.recipe=int8", "are written by the conversion"),
    "coremltools' key": (
        f"--metadata {COREMLTOOLS}.version=1",
        "are written by the conversion",
    ),
    "a key twice": ("--metadata a=1 --metadata a=2", "--metadata a is given twice"),
    "an old name described": (
        "--name x=image --metadata describe.x=Numbers",
        "the artifact has no input or output 'x'",
        "inputs are image, mask",
    ),
    "nothing described": ("--metadata describe.=Numbers", "does not say what it describes"),
    "no UTF-8": ("--metadata 'author=J\udcff'", "holds bytes that are no text in UTF-8"),
    "no place for it": ("--metadata a=1 --target executorch-mps", "an ExecuTorch program has no place"),
}


@pytest.mark.parametrize(("options", "words"), [(row[0], row[1:]) for row in REFUSED.values()], ids=REFUSED)
def test_bad_input_is_one_message_and_nothing_is_written(model, tmp_path, options, words):
    told = " ".join(command(model, tmp_path / "out", f"{options} --no-cache", code=2).split())
    assert all(text in told for text in words) and told.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_the_same(model, tmp_path):
    assert "no input or output 'y'" in command(model, tmp_path / "out", "--dry-run --name y=z", code=2)
    assert "no input or output 'y'" in command(
        model, tmp_path / "out", "--dry-run --metadata describe.y=z", code=2
    )


def test_names_and_metadata_decide_what_the_cache_gives(model, tmp_path, monkeypatch, ct):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "cache"))

    def converted(folder, **options):
        report = run(plan_from(model, {"out": tmp_path / folder, **options}))
        return report.stages[0].cached, (tmp_path / folder / "net.mlpackage/Data").rglob("*.mlmodel")

    first, second, third = {"name": {"x": "a"}}, {"name": {"x": "b"}}, {"metadata": {"author": "Jane"}}
    assert [converted(f"{index}", **options)[0] for index, options in enumerate((first, second, third))] == [
        False, False, False,
    ]  # fmt: skip
    cached, files = converted("again", **first)
    assert cached
    assert [file.read_bytes() for file in files] == [
        file.read_bytes() for file in (tmp_path / "0/net.mlpackage/Data").rglob("*.mlmodel")
    ]
    assert features(description(tmp_path / "again/net.mlpackage", ct))[0] == ["a", "mask"]
    assert description(tmp_path / "2/net.mlpackage", ct).metadata.author == "Jane"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("hub") / "tiny-bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=24,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nauthor: Jane Doe\n---\n# Tiny\n")
    return folder


def test_a_model_card_fills_in_what_the_user_does_not_say(bert, tmp_path, ct, monkeypatch):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "cache"))

    def told(folder, **options):
        run(plan_from(bert, {"out": tmp_path / folder, **options}))
        described = description(tmp_path / folder / "tiny-bert.mlpackage", ct)
        metadata = described.metadata
        return metadata.author, metadata.license, metadata.userDefined["cidermill.source"]

    assert told("default") == ("Jane Doe", "apache-2.0", "tiny-bert")
    assert told("own", metadata=["license=MIT", "author="]) == ("", "MIT", "tiny-bert")
    (bert / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    assert told("changed") == ("", "gpl-3.0", "tiny-bert")


def test_a_table_of_a_build_is_the_command(tmp_path):
    text = """
        [defaults]
        [defaults.metadata]
        author = "Jane"
        describe.image = "A photo"
        [models.net]
        path = "net.pt"
        name = { x = "image" }
        [[models.net.variants]]
        name = "small"
        names = ["x=picture"]
        metadata = { license = "MIT" }
        [[models.net.variants]]
        name = "large"
    """
    (tmp_path / "cidermill.toml").write_text(text)
    small, large = read_config(tmp_path / "cidermill.toml").jobs
    assert (small.plan.names, small.plan.metadata) == ((("x", "picture"),), (("license", "MIT"),))
    assert large.plan.names == (("x", "image"),)
    assert large.plan.metadata == (("author", "Jane"), ("describe.image", "A photo"))
    assert {"--name=x=image", "--metadata=author=Jane", "--metadata=describe.image=A photo"} <= set(
        large.words
    )


def test_a_renamed_graph_has_every_name_once(model):
    source = load(model)
    own = capture(source, synthetic(source.inputs, 1, limits=source.limits))
    graph = renamed(own, {"x": "relu", "mask": "relu_value"})
    names = [node.name for node in graph.program.graph.nodes]
    assert len(set(names)) == len(names) and names.count("relu") == names.count("relu_value") == 1
    assert set(graph.samples.batches[0]) == {"relu", "relu_value"} == {spec.name for spec in graph.inputs}


def test_the_readme_shows_both_in_one_command(tmp_path, ct):
    (line,) = [line for line in README.read_text().splitlines() if "--name " in line and "convert" in line]
    words = shlex.split(line.partition(" # ")[0])
    assert words[:3] == ["cidermill", "convert", "model.pt"]
    (old,) = re.findall(r"--name (\w+)=", line)

    class Square(torch.nn.Module):
        def forward(self, **inputs):
            return inputs[old] * inputs[old]

    torch.export.save(
        torch.export.export(Square(), (), {old: torch.randn(1, 3, 8, 8)}), tmp_path / "model.pt"
    )
    command(tmp_path / "model.pt", tmp_path / "out", shlex.join(words[3:]))
    described = description(tmp_path / "out/model.mlpackage", ct)
    assert described.input[0].name == "image" and described.metadata.author == "Jane Doe"
    assert described.input[0].shortDescription
