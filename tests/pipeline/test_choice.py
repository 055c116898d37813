"""Budgets: they are kept, the table serves the next one, impossible ones name the nearest possible."""

import json
import re

import pytest
import torch
from click.testing import CliRunner

import cidermill
from cidermill.models.errors import UserError
from cidermill.pipeline.choice import to_recipe
from cidermill.pipeline.commands.cli import convert
from cidermill.pipeline.layer_schemes import default_schemes, parse_schemes
from cidermill.pipeline.quantities import Budget, parse_budget
from cidermill.quantization.recipe import parse_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("choose") / "model.pt2"
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *[layer for _ in range(4) for layer in (torch.nn.Linear(128, 128), torch.nn.ReLU())],
        torch.nn.Linear(128, 64),
    ).eval()
    torch.export.save(torch.export.export(net, (torch.randn(1, 128),)), path)
    return path


SCHEMES = ["--schemes", "palettize8,palettize4,palettize2,float16"]


def run(model, out, *options: str):
    return CliRunner().invoke(convert, [str(model), "--out", str(out), "--json", *options])


def test_a_size_is_kept_and_the_table_serves_the_next_budget(model, tmp_path):
    result = run(model, tmp_path / "out", "--budget", "75kB", *SCHEMES)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    artifact, budget = report["artifacts"][0], report["budget"]
    assert (
        artifact["size_bytes"] <= 75e3 == budget["size_bytes"]
        and budget["measured"]["coreml"]["size_bytes"] == artifact["size_bytes"]
    )
    # 1.6 kB of a graph of 8
    assert abs(artifact["predicted"]["size_bytes"] / artifact["size_bytes"] - 1) < 0.03
    assert artifact["size_bytes"] > 60e3, "the budget should be made use of"
    table = (tmp_path / "out" / "sensitivity.json").read_text()
    assert "palettize2" in table
    again = run(model, tmp_path / "out", "--budget", "3bpw", *SCHEMES)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "sensitivity.json").read_text() == table
    assert json.loads(again.stdout)["budget"]["measured"]["coreml"]["bits_per_weight"] <= 3.003


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Long names, which every override repeats in the file's metadata, and constants that only lowering
    makes."""

    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings_of_the_words = torch.nn.Embedding(64, 48)
            self.layers_in_the_middle = torch.nn.ModuleList([torch.nn.Linear(48, 48) for _ in range(8)])

        def forward(self, ids):
            state = self.embeddings_of_the_words(ids)
            for layer in self.layers_in_the_middle:
                state = state + torch.tanh(layer(torch.nn.functional.rms_norm(state, (48,))))
            return state.masked_fill(ids.unsqueeze(-1) == 0, 0.0)

    path = tmp_path_factory.mktemp("tokens") / "model.pt2"
    torch.manual_seed(0)
    torch.export.save(torch.export.export(Reader().eval(), (torch.arange(1, 13)[None],)), path)
    return path


@pytest.mark.parametrize("budget", ["5bpw", "49kB"])
def test_what_the_choice_could_not_foresee_is_corrected(tokens, tmp_path, budget):
    """Sizes were exceeded by the text of the chosen recipe, bits per weight by the graph's own constants, and
    the verdict failed."""
    result = run(
        tokens, tmp_path / "out", "--budget", budget, "--schemes", "int8,int4,palettize4,palettize2,float16"
    )
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)["budget"]["measured"]["coreml"]
    wanted = parse_budget(budget)
    assert measured["size_bytes"] <= (wanted.size_bytes or 1e9) and measured["bits_per_weight"] <= (
        wanted.bits_per_weight or 99
    )


def test_a_budget_that_only_the_artifact_shows_to_be_too_small_names_its_size(tokens, tmp_path):
    options = ["--schemes", "palettize4,palettize2"]
    about = float(
        re.search(
            r"about (\S+)kB",
            " ".join(run(tokens, tmp_path / "out", "--budget", "20kB", *options).stderr.split()),
        )[1]
    )
    refused = " ".join(run(tokens, tmp_path / "out", "--budget", f"{about}kB", *options).stderr.split())
    exact = re.search(r"the nearest possible is (\S+kB)", refused)[1]
    assert run(tokens, tmp_path / "out", "--budget", exact, *options).exit_code == 0


def test_the_nearest_possible_is_possible(model, tmp_path):
    refused = " ".join(run(model, tmp_path / "out", "--budget", "9kB", *SCHEMES).stderr.split())
    nearest = re.search(r"the nearest possible is about (\S+)\.", refused)[1]
    assert run(model, tmp_path / "out", "--budget", nearest, *SCHEMES).exit_code == 0


def test_the_recipe_file_gives_the_same_artifact(model, tmp_path):
    first = json.loads(run(model, tmp_path / "a", "--budget", "75kB", *SCHEMES).stdout)
    result = run(model, tmp_path / "b", "--quant", str(tmp_path / "a" / "recipe.toml"))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["artifacts"][0]["sha256"] == first["artifacts"][0]["sha256"]


def test_an_error_is_kept_with_as_few_bytes_as_it_takes(model, tmp_path):
    sizes = []
    for decibels in (25, 45):
        result = run(model, tmp_path / f"{decibels}", "--min-psnr", f"{decibels}", *SCHEMES)
        assert result.exit_code == 0, result.output
        artifact = json.loads(result.stdout)["artifacts"][0]
        assert artifact["validation"]["compression"][0]["psnr_db"] >= decibels
        sizes.append(artifact["size_bytes"])
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--budget", "9kB", *SCHEMES], "the nearest possible is about 2"),
        (["--budget", "1bpw", *SCHEMES], "the nearest possible is 2"),
        (["--min-psnr", "150", "--schemes", "palettize4,palettize2"], "the nearest possible is 3"),
        (["--budget", "45kB", "--min-psnr", "80", *SCHEMES], "cannot be kept together"),
        (["--budget", "much"], "--budget 'much' is no size"),
        (["--budget", "0MB"], "is no size"),
        (["--budget", ""], "--budget '' is no size"),
        (["--dry-run", "--budget", "12XB"], "--budget '12XB' is no size"),
        (["--budget", "1MB", "--schemes", ""], "--schemes '': a scheme is missing"),
        (["--budget", "1MB", "--schemes", "int8,,int4"], "a scheme is missing"),
        (
            ["--budget", "1MB", "--schemes", "int8,int4", "--deployment-target", "iOS16"],
            "iOS16 cannot hold int4",
        ),
        (["--dry-run", "--device", "abacus"], "abacus"),
        (["--schemes", "int8,int4"], "--schemes needs a budget"),
        (["--budget", "1MB", "--quant", "int8"], "A recipe and a budget"),
        (["--budget", "1MB", "--schemes", "int8,w8a8"], "w8a8 cannot be chosen for single layers"),
        (["--budget", "1MB", "--schemes", "int8,int4:awq"], "int4:awq cannot be chosen for single layers"),
        (["--budget", "1MB", "--schemes", "int9"], "integers of 9 bits"),
        (["--sensitivity", "x.json"], "--sensitivity has no use"),
        (["--budget", "1MB", "--sensitivity", "/nowhere.json"], "is not a file"),
    ],
)
def test_what_cannot_be_kept(model, tmp_path, options, message):
    result = run(model, tmp_path / "out", *options)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.output
    assert not (tmp_path / "out").exists() and "Traceback" not in result.output


def test_a_table_of_another_model_is_refused(model, tmp_path):
    assert run(model, tmp_path / "a", "--budget", "75kB", *SCHEMES).exit_code == 0
    table = tmp_path / "a" / "sensitivity.json"
    table.write_text(table.read_text().replace('"source": "', '"source": "f'))
    result = run(model, tmp_path / "b", "--budget", "75kB", "--sensitivity", str(table), *SCHEMES)
    assert result.exit_code == 2 and "was measured on another model" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("12MB", Budget("12MB", 12e6)),
        ("800 kb", Budget("800 kb", 8e5)),
        ("1.5GiB", Budget("1.5GiB", 1.5 * 2**30)),
        ("4.5bpw", Budget("4.5bpw", None, 4.5)),
    ],
)
def test_budgets(text, wanted):
    assert parse_budget(text) == wanted


def test_default_schemes_are_those_that_the_target_holds():
    def names(deployment_target):
        return [scheme.name for scheme in default_schemes(("coreml",), deployment_target)]

    assert names("iOS18") == [
        "int8",
        "int4",
        "palettize4",
        "palettize2",
        "float16",
    ]
    assert names("iOS16") == ["int8", "palettize4", "palettize2", "float16"]
    with pytest.raises(UserError):
        parse_schemes("int8,")


def test_exact_names_even_with_wildcards_in_them():
    int8, half = parse_recipe("int8"), parse_recipe("float16")
    recipe = to_recipe({"a[0].weight": (10, half), "a0.weight": (1000, int8), "b*": (10, half)})
    assert recipe.name == "int8; a[[]0].weight=float16; b[*]=float16"


@pytest.mark.parametrize("budget", [dict(min_psnr=30, schemes="int8,int4"), dict(budget="4bpw")])
def test_a_model_without_weights_has_nothing_to_choose(tmp_path, budget):
    report = cidermill.convert(torch.nn.ReLU(), (torch.randn(2, 3),), out=tmp_path / "out", **budget)
    assert report.verdict == "pass" and report.artifacts[0].recipe == "float16"
