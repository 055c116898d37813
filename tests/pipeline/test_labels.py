"""Classifiers: labels in, label and probabilities out of the saved package; numpy is the judge."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill import convert, inspect, open_runner, validate
from cidermill.converters.coreml import write
from cidermill.models.errors import UserError
from cidermill.pipeline.commands.cli import convert as convert_command
from cidermill.pipeline.dry_run import forecast
from cidermill.pipeline.labels import LabelsOption, parse_labels
from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.run import run
from cidermill.pipeline.step import silent

README = Path(__file__).resolve().parents[2] / "README.md"
LABELS = ["zebra", "ant", "mole", "bee", "cat"]
X = torch.randn(1, 8, generator=torch.Generator().manual_seed(3))


class Net(torch.nn.Module):
    """Logits of five classes, far apart; last: what comes behind them."""

    def __init__(self, last=None, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 64), torch.nn.Linear(64, classes)
        self.last = last or torch.nn.Identity()

    def forward(self, x):
        return self.last(8 * self.second(self.first(x).relu()))


class TwoHeads(Net):
    def forward(self, x):
        return {"features": self.first(x).relu(), "logits": super().forward(x)}


def softmax(logits):
    powers = np.exp(np.float64(logits) - np.float64(logits).max())
    return powers / powers.sum()


def made(model, out, labels=LABELS, **options):
    return convert(model.eval(), (X,), out=out, labels=labels, cache=False, **options)


def package_in(folder):
    (package,) = folder.glob("*.mlpackage")
    return package


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    return made(Net(), out, quant="int8"), package_in(out)


def test_the_saved_package_gives_labels_and_probabilities(classifier):
    report, package = classifier
    assert report.verdict == "pass" and report.artifacts[0].warnings == ()
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((1, 8)).astype(np.float32)
        with torch.no_grad():
            want = softmax(Net().eval()(torch.from_numpy(x)).numpy()[0])
        answer = open_runner(package, host="reference")({"x": x})
        assert list(answer) == ["classLabel", "classLabel_probs"]
        assert answer["classLabel"] == LABELS[int(want.argmax())]
        assert list(answer["classLabel_probs"]) == LABELS
        assert np.abs(np.array(list(answer["classLabel_probs"].values())) - want).max() < 0.05  # int8


def test_the_report_says_what_was_done(classifier):
    report, package = classifier
    told = report.artifacts[0].classifier
    assert (told.label, told.probabilities, told.classes) == ("classLabel", "classLabel_probs", 5)
    assert told.scores == "softmax added" and told.agreed + told.near_ties == told.samples > 1
    assert [spec.name for spec in report.source.outputs] == ["classLabel_probs"]
    content = json.loads((package.parent / "report.json").read_text())
    assert content["artifacts"][0]["classifier"]["scores"] == "softmax added"
    sentence = "5 classes in classLabel and classLabel_probs; a softmax was added to the model&#39;s logits"
    assert sentence in (package.parent / "report.html").read_text()


def test_inspect_lists_the_labels(classifier):
    assert inspect(classifier[1]).classes == tuple(LABELS)


def test_a_package_without_labels_has_none(tmp_path):
    convert(Net().eval(), (X,), out=tmp_path / "out", cache=False)
    assert not inspect(package_in(tmp_path / "out")).classes


@pytest.mark.parametrize(
    ("last", "scores"),
    [
        (None, "softmax added"),
        (torch.nn.LogSoftmax(-1), "softmax added"),
        (torch.nn.Softmax(-1), "probabilities"),
        (
            torch.nn.Sequential(torch.nn.Softmax(-1), torch.nn.Unflatten(1, (5, 1)), torch.nn.Flatten()),
            "probabilities",
        ),
        (torch.nn.Sigmoid(), "independent"),
    ],
    ids=["logits", "log softmax", "softmax", "softmax, flattened", "sigmoid"],
)
def test_softmax_is_added_to_logits_only(tmp_path, last, scores):
    report = made(Net(last), tmp_path / "out")
    assert report.verdict == "pass" and report.artifacts[0].classifier.scores == scores
    with torch.no_grad():
        want = Net(last).eval()(X).numpy()[0]
    want = softmax(want) if scores == "softmax added" else want
    answer = open_runner(package_in(tmp_path / "out"), host="reference")({"x": X})
    assert np.abs(np.array(list(answer["classLabel_probs"].values())) - want).max() < 0.01


def test_labels_are_foreseen(tmp_path):
    model = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Net(classes=1000).eval(), (X,)), model)
    sizes = []
    for width in (3, 40):
        labels = [f"{number}".rjust(width, "x") for number in range(1000)]
        plan = plan_from(model, {"labels": labels, "out": tmp_path / str(width), "cache": False})
        foreseen = forecast(plan, silent).recipes[0].size_bytes["coreml"]
        sizes.append(np.array([run(plan).artifacts[0].size_bytes, foreseen]))
        assert abs(sizes[-1][1] / sizes[-1][0] - 1) < 0.02
    real, foreseen = sizes[1] - sizes[0]
    assert abs(foreseen - real) < 100


@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS26"])
def test_every_deployment_target(tmp_path, target):
    assert made(Net(), tmp_path / "out", deployment_target=target).verdict == "pass"


def test_whole_numbers_are_integer_classes(tmp_path, ct):
    file = tmp_path / "labels.txt"
    file.write_text("\ufeff-1\r\n20\r\n300\r\n4\r\n5\r\n")
    assert parse_labels(str(file)) == LabelsOption((-1, 20, 300, 4, 5), origin=str(file))
    assert made(Net(), tmp_path / "out", labels=str(file)).verdict == "pass"
    package = package_in(tmp_path / "out")
    description = ct.utils.load_spec(str(package / "Data/com.apple.CoreML/model.mlmodel")).description
    assert description.output[0].type.WhichOneof("Type") == "int64Type"
    answer = open_runner(package, host="reference")({"x": X})
    with torch.no_grad():
        assert answer["classLabel"] == (-1, 20, 300, 4, 5)[int(Net().eval()(X).argmax())]


def test_python_takes_a_list_of_either_kind(tmp_path):
    made(Net(), tmp_path / "whole", labels=[3, 1, 4, 15, 9])
    made(Net(), tmp_path / "text", labels=("3", "1", "4", "15", "9"))
    for folder, kind in (("whole", int), ("text", str)):
        answer = open_runner(package_in(tmp_path / folder), host="reference")({"x": X})
        assert type(answer["classLabel"]) is kind


def test_the_same_bytes_every_time(tmp_path):
    first, second = (made(Net(), tmp_path / name).artifacts[0] for name in ("one", "two"))
    assert first.sha256 == second.sha256


def test_the_output_that_is_meant(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(LABELS))
    report = made(TwoHeads(), tmp_path / "out", labels=f"{file}:logits")
    assert report.verdict == "pass"
    assert [spec.name for spec in report.source.outputs] == ["features", "classLabel_probs"]
    answer = open_runner(package_in(tmp_path / "out"), host="reference")({"x": X})
    assert list(answer) == ["classLabel", "classLabel_probs", "features"]
    comparison = validate(package_in(tmp_path / "out"), TwoHeads().eval(), (X,))
    assert comparison.verdict == "pass"
    assert [error.shape for error in comparison.validation.conversion] == [(1, 64), (1, 5)]


def test_other_names_for_the_outputs(tmp_path):
    names = {"classLabel": "linear", "output": "relu"}  # which operators have
    report = made(
        Net(),
        tmp_path / "out",
        name=names,
        metadata={"describe": {"linear": "An animal", "relu": "How sure"}},
    )
    assert report.verdict == "pass" and report.artifacts[0].classifier.label == "linear"
    assert list(open_runner(package_in(tmp_path / "out"), host="reference")({"x": X})) == ["linear", "relu"]


def test_another_target_gives_the_probabilities(tmp_path):
    report = made(Net(), tmp_path / "out", target=["coreml", "executorch-mps"])
    assert report.verdict == "pass"
    package, program = report.artifacts
    sentence = "ExecuTorch MPS has no place for labels: this artifact gives the probabilities in their order."
    assert sentence in program.warnings and sentence not in package.warnings
    assert package.classifier and not program.classifier
    answer = open_runner(next((tmp_path / "out").glob("*.pte")), host="reference")({"x": X})
    with torch.no_grad():
        assert np.abs(answer["classLabel_probs"][0] - softmax(Net().eval()(X).numpy()[0])).max() < 0.01


@pytest.mark.parametrize("change", ["order", "another"])
def test_wrong_labels_in_the_file_fail(tmp_path, monkeypatch, change):
    classify = write.classify

    def wrongly(specification, classes, texts):
        labels = classes.labels[::-1] if change == "order" else (*classes.labels[:-1], "dog")
        classify(specification, classes.__class__(labels), texts)

    monkeypatch.setattr(write, "classify", wrongly)
    report = made(Net(), tmp_path / "out")
    assert report.verdict == "fail"
    (warning,) = [text for text in report.artifacts[0].warnings if "are not those asked for" in text]
    assert ("its class 0 is 'cat' instead of 'zebra'" if change == "order" else "class 4 is 'dog'") in warning


def test_a_label_of_another_class_fails():
    from cidermill.validation.judge.labels import check_labels

    chances = [np.array([[0.7, 0.2, 0.1]]), np.array([[0.45, 0.45, 0.1]]), np.array([[0.1, 0.446, 0.454]])]

    def check(*given):
        return check_labels("abc", "abc", given, chances, 40.0)

    assert (check("a", "b", "b").agreed, check("a", "b", "b").near_ties) == (2, 1)
    assert check("a", "a", "c").passed and not check("b", "a", "c").passed
    assert not check("a", "a", "dog").passed


def test_probabilities_that_are_all_alike_prove_little(tmp_path):
    """Logits near zero: any graph would give these probabilities within 40 dB."""

    class Undecided(Net):
        def forward(self, x):
            return super().forward(x) / 1000

    report = made(Undecided(), tmp_path / "out")
    assert report.verdict == "pass"
    (warning,) = report.artifacts[0].warnings
    assert "nearly alike on these samples" in warning and "--samples" in warning


def test_validate_compares_with_a_model_that_gives_logits(classifier):
    package, model = classifier[1], Net().eval()
    comparison = validate(package, model, (X,), tolerance=30)
    assert comparison.verdict == "pass" and any(
        "Compared is the softmax" in text for text in comparison.warnings
    )
    with torch.no_grad():
        model.second.bias += torch.tensor([2.0, 0, 0, 0, -2.0])
    assert validate(package, model, (X,), tolerance=30).verdict == "fail"


class Listening(torch.nn.Module):
    """It remembers what it heard, and names what it heard of late."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("memory", torch.zeros(1, 32))
        self.hear, self.name = torch.nn.Linear(8, 32), torch.nn.Linear(32, 5)

    def forward(self, x):
        self.memory.mul_(0.9).add_(self.hear(x))
        return 3 * self.name(self.memory)


@pytest.mark.parametrize("state", ["auto", "io"])
def test_a_classifier_with_states(tmp_path, state):
    report = made(Listening(), tmp_path / "out", state=state)
    assert report.verdict == "pass" and report.artifacts[0].classifier.scores == "softmax added"
    row = report.artifacts[0].validation.in_a_row
    assert row.calls > 10 and row.conversion[0].output == "classLabel_probs"
    package = package_in(tmp_path / "out")
    assert validate(package, Listening().eval(), (X,)).verdict == "pass"
    if state == "auto":
        runner, model = open_runner(package, host="reference"), Listening().eval()
        memory = runner.make_state()
        for x in torch.randn(6, 1, 8):
            with torch.no_grad():
                want = softmax(model(x).numpy()[0])
            answer = runner({"x": x}, state=memory)
            assert np.abs(np.array(list(answer["classLabel_probs"].values())) - want).max() < 0.01


@pytest.mark.parametrize("sizes", ["1x3x8,16x8,16", "1x3x8..16@8x8"])
def test_a_classifier_of_several_sizes(tmp_path, sizes):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )  # fmt: skip
    report = convert(
        model.eval(), None, input=[f"input:{sizes}"], labels=LABELS, out=tmp_path / "out", cache=False
    )
    assert report.verdict == "pass" and report.artifacts[0].classifier.agreed > 3
    runner = open_runner(package_in(tmp_path / "out"), host="reference")
    x = torch.randn(1, 3, 16, 16 if "16x8,16" in sizes else 8)
    with torch.no_grad():
        want = softmax(model(x).numpy()[0])
    answer = runner({"input": x})
    assert np.abs(np.array(list(answer["classLabel_probs"].values())) - want).max() < 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """-> a function that makes a Hugging Face folder with a configuration."""
    import transformers

    def make(name, **settings):
        path = tmp_path_factory.mktemp("hub") / name
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=24, initializer_range=0.2, **settings,
        )  # fmt: skip
        transformers.BertForSequenceClassification(config).save_pretrained(path)
        return path

    return make


def command(model, out, options, code=0):
    result = CliRunner().invoke(
        convert_command, [str(model), "--out", str(out), "--no-cache", *shlex.split(options)]
    )
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def numbered(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}


def test_auto_takes_the_labels_of_a_configuration(folder, tmp_path):
    path = folder("moods", **numbered("sad", "so-so", "glad"))
    told = command(path, tmp_path / "out", "--labels auto")
    assert "a softmax was added to the model's logits" in told
    assert inspect(package_in(tmp_path / "out")).classes == ("sad", "so-so", "glad")
    comparison = validate(package_in(tmp_path / "out"), path)
    assert comparison.verdict == "pass"
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = {"0": "glad", "1": "so-so", "2": "sad"}
    (path / "config.json").write_text(json.dumps(config))
    comparison = validate(package_in(tmp_path / "out"), path)
    assert (
        comparison.verdict == "fail" and "its class 0 is 'sad', the model's 'glad'" in comparison.warnings[0]
    )


def test_placeholders_and_equal_labels_are_said(folder, tmp_path):
    told = command(folder("plain", num_labels=3), tmp_path / "plain", "--labels auto")
    assert "The labels are placeholders (LABEL_0, ...)" in told
    birds = folder("birds", **numbered("crane", "heron", "crane"))
    assert "calls several classes 'crane'" in command(birds, tmp_path / "birds", "--labels auto")
    assert inspect(package_in(tmp_path / "birds")).classes == ("crane (0)", "heron", "crane (2)")


def test_several_classes_at_once_get_a_sigmoid(folder, tmp_path):
    path = folder("tags", problem_type="multi_label_classification", **numbered("a", "b", "c"))
    told = command(path, tmp_path / "out", "--labels auto")
    assert "a sigmoid was added to the model's logits" in told
    assert validate(package_in(tmp_path / "out"), path).verdict == "pass"
    graph = open_runner(package_in(tmp_path / "out"), host="reference").graph
    assert [node.op for node in graph.nodes[-3:]] == ["sigmoid", "cast", "classify"]


def test_a_model_of_transformers_in_memory(folder, tmp_path):
    import transformers

    path = folder("memory", **numbered("no", "yes"))
    model = transformers.BertForSequenceClassification.from_pretrained(path)
    convert(model, {"input_ids": torch.ones(1, 8, dtype=torch.long)}, out=tmp_path / "out", labels="auto")
    assert inspect(package_in(tmp_path / "out")).classes == ("no", "yes")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for name, model in {
        "net": Net(), "heads": TwoHeads(), "one": Net(classes=1), "none": torch.nn.Flatten(0),
    }.items():  # fmt: skip
        torch.export.save(
            torch.export.export(model.eval(), (X if name != "none" else X[None],)), path / f"{name}.pt2"
        )
    files = {
        "five": "\n".join(LABELS), "three": "a\nb\nc\n", "one": "a\n", "empty": " \n\n", "twice": "a\nb\n a",
        "blank": "a\n\nb\n", "numbers": "1\n2\n01\n",
    }  # fmt: skip
    for name, text in files.items():
        (path / f"{name}.txt").write_text(text)
    (path / "bytes.txt").write_bytes(b"caf\xe9\n")
    (path / "sixtyfour.txt").write_text("\n".join(map(str, range(64))))
    return path


REFUSED = {
    "no file": ("net", "absent.txt", "there is no such file"),
    "a folder": ("net", ".", "cannot be read"),
    "none": ("net", "empty.txt", "holds no labels", "a label a line"),
    "twice": ("net", "twice.txt", "line 1 and line 3 are both 'a'"),
    "one number twice": ("net", "numbers.txt", "line 1 and line 3 are both '1'"),
    "a blank line": ("net", "blank.txt", "line 2 is blank"),
    "no UTF-8": ("net", "bytes.txt", "no text in UTF-8"),
    "another number": ("net", "three.txt", "has 3 labels, the output output has 5 classes"),
    "one class": ("one", "one.txt", "output [1, 1] is one number"),
    "no name": ("net", "five.txt:", "does not name labels and an output"),
    "an unknown output": ("net", "five.txt:scores", "no output 'scores'", "outputs are output [1, 5]"),
    "several": ("heads", "five.txt", "features [1, 64], logits [1, 5]", "five.txt:features"),
    "the other": ("heads", "five.txt:features", "has 5 labels, the output features has 64 classes"),
    "auto without a folder": ("net", "auto", "is no Hugging Face folder", "--labels labels.txt"),
    "no place for it": ("net", "five.txt --target executorch-mps", "an ExecuTorch program has no place"),
    "an input's name": ("net", "five.txt --name classLabel=x", "would be called 'x'"),
    "one name for both": ("net", "five.txt --name classLabel=a --name output=a", "'a' is given twice"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "labels", "words"), [(*row[:2], row[2:]) for row in REFUSED.values()], ids=REFUSED
)
def test_bad_input_is_one_message_and_nothing_is_written(models, tmp_path, monkeypatch, model, labels, words):
    monkeypatch.chdir(models)
    told = command(f"{model}.pt2", tmp_path / "out", f"--labels {labels}", code=2)
    assert all(text in told for text in words) and told.count("error:") == 1, told
    assert list(tmp_path.iterdir()) == []


def test_an_output_of_another_shape_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no output is of the shape \[1, classes\]") as error:
        made(torch.nn.Unflatten(1, (2, 4)), tmp_path / "out", labels=list("abcd"))
    assert "[1, 2, 4]" in error.value.hint
    for labels, words in (
        ([True, False], "neither all texts"),
        (["a", 1], "neither"),
        ([], "no labels"),
        (["a", "a"], "entry 0 and entry 1"),
        (["a", " "], "entry 1 is blank"),
        (["a", "\ud800"], "entry 1 holds half a character"),
        ([1, 1 << 63], "is no integer of 64 bits"),
    ):
        with pytest.raises(UserError, match=words):
            made(Net(), tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()


def test_a_file_may_have_a_colon_in_its_name(tmp_path):
    file = tmp_path / "a:b"
    file.write_text("cat\ndog")
    assert parse_labels(str(file)) == LabelsOption(("cat", "dog"), origin=str(file))
    assert parse_labels(f"{file}:logits").output == "logits"
    assert parse_labels("auto:logits") == LabelsOption(None, "logits")


def test_the_readme_shows_both_forms(tmp_path, monkeypatch, folder):
    lines = [
        line
        for line in README.read_text().splitlines()
        if re.match(r"cidermill convert [^ ]+ --labels", line)
    ]
    assert len(lines) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    torch.export.save(torch.export.export(Net().eval(), (X,)), "model.pt")
    folder("vit", **numbered("cat", "dog")).rename("vit-folder")
    for line in lines:
        words = shlex.split(line)
        command(words[2], tmp_path / "out" / words[2], shlex.join(words[3:]))
        assert inspect(package_in(tmp_path / "out" / words[2])).classes
