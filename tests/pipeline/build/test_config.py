"""cidermill.toml: every option of `convert` is a key and arrives; everything that is wrong is one message
with its place, before any work."""

from pathlib import Path

import click
import pytest

from cidermill.models.errors import UserError
from cidermill.models.inputs import InputSpec
from cidermill.pipeline.build.config import read_config, select
from cidermill.pipeline.build.keys import option_keys
from cidermill.pipeline.commands.cli import convert
from cidermill.pipeline.labels import LabelsOption
from cidermill.pipeline.picture_options import PictureOption
from cidermill.pipeline.plan import plan_from
from cidermill.pipeline.quantities import Budget, LatencyLimit
from cidermill.pipeline.suppression import SuppressionOption
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation.estimate.devices import find_device

# key -> (what stands in the file, where it arrives in the Plan, as what). Written by hand: an option that
# `convert` gains needs its line here.
KEYS = {
    "target": ('["executorch-mps", "coreml"]', "targets", ("executorch-mps", "coreml")),
    "quant": ('"int4:block32; lm_head*=int8"', "recipe", parse_recipe("int4:block32; lm_head*=int8")),
    "palettize": ("4", "recipe", parse_recipe("palettize4")),
    "prune": ("0.5", "recipe", parse_recipe("prune50")),
    "input": ('"image:1x3x8x8"', "inputs", (InputSpec("image", (1, 3, 8, 8)),)),
    "samples": ('"samples.npz"', "samples", "samples.npz"),
    "deployment-target": ('"iOS17"', "deployment_target", "iOS17"),
    "device": ('["iPhone 15 Pro", "A14"]', "devices", (find_device("iPhone 15 Pro"), find_device("A14"))),
    "calibration": ('"m2.json"', "calibration", Path("m2.json")),
    "measure": ("false", "measure", False),
    "no-measure": ("true", "measure", False),
    "model-class": ('"nets:build"', "model_class", "nets:build"),
    "trust-pickle": ("true", "trust_pickle", True),
    "min-psnr": ("30", "min_psnr", 30.0),
    "max-size": ('"12MB"', "max_size_bytes", 12e6),
    "max-latency": (
        '["iPhone 15 Pro=3ms", "A14=5ms"]',
        "max_latency",
        (LatencyLimit(find_device("iPhone 15 Pro"), 3.0), LatencyLimit(find_device("A14"), 5.0)),
    ),
    "min-ane-share": ("0.95", "min_ane_share", 0.95),
    "budget": ('"4.5bpw"', "budget", Budget("4.5bpw", bits_per_weight=4.5)),
    "schemes": ('"int8,int4"\nmin-psnr = 30', "schemes", (parse_recipe("int8"), parse_recipe("int4"))),
    "sensitivity": ('"table.json"\nbudget = "12MB"', "sensitivity", Path("table.json")),
    "part": ('["encoder", "decoder"]', "parts", ("encoder", "decoder")),
    "out": ('"elsewhere"', "out", Path("elsewhere")),
    "force": ("true", "force", True),
    "name": ('["x=image"]', "names", (("x", "image"),)),
    "names": ('{ x = "image" }', "names", (("x", "image"),)),
    "metadata": ('{ author = "Jane" }', "metadata", (("author", "Jane"),)),
    "nms": ('"boxes,scores:iou=0.5"', "suppression", SuppressionOption("boxes", "scores", 0.5, 0.25)),
    "labels": ('"labels.txt"', "labels", LabelsOption(("cat", "dog"), origin="labels.txt")),
    "state": ('"io"', "state", "io"),
    "image": ('["x:bgr"]', "images", (PictureOption("x", "x:bgr", "BGR", numbers={}),)),
    "image-output": ('"y"', "image_outputs", (PictureOption("y", "y"),)),
    "io": ('"float16"', "io", "float16"),
    "cache": ("false", "cache", False),
    "no-cache": ("true", "cache", False),
}
NO_KEYS = {"json", "quiet", "version", "dry-run", "ci", "junit"}  # of the command, not of a model
OPTIONS = {
    word[2:]
    for option in convert.params
    if isinstance(option, click.Option)
    for word in (*option.opts, *option.secondary_opts)
    if word.startswith("--")
}
HERE = sorted((OPTIONS - NO_KEYS) | {"names"})
PLACES = [
    (table, key)
    for table in ("[defaults]", "[models.net]", "[[models.net.variants]]")
    for key in HERE
    if (table, key) != ("[[models.net.variants]]", "name")  # which is the variant's own
]


def write(folder, text):
    file = folder / "cidermill.toml"
    file.write_text(text)
    return file


def plans(folder, text):
    return {job.name: job.plan for job in read_config(write(folder, text)).jobs}


@pytest.mark.parametrize(("table", "key"), PLACES)
def test_every_option_of_convert_is_a_key(tmp_path, key, table):
    value, field, wanted = KEYS[key]
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    model = '[models.net]\npath = "net.pt"\n'
    texts = {
        "[defaults]": f"[defaults]\n{key} = {value}\n{model}",
        "[models.net]": f"{model}{key} = {value}\n",
        "[[models.net.variants]]": f'{model}[[models.net.variants]]\nname = "v"\n{key} = {value}\n',
    }
    (plan,) = plans(tmp_path, texts[table]).values()
    if (table, key) == ("[defaults]", "out"):
        wanted = Path("elsewhere/net")  # there it holds everyone's folder
    assert getattr(plan, field) == wanted
    assert type(getattr(plan, field)) is type(wanted)


def test_there_are_no_other_keys():
    assert set(option_keys()) == set(KEYS) == set(HERE)


def test_without_keys_a_plan_is_that_of_convert_without_options(tmp_path):
    assert plans(tmp_path, '[models.net]\npath = "net.pt"\n') == {
        "net": plan_from("net.pt", {"out": "build/net"})
    }


def names(devices):
    return tuple(device.name for device in devices)


def test_the_nearer_table_wins(tmp_path):
    found = plans(
        tmp_path,
        """
        [defaults]
        device = ["A14", "M2"]
        no-measure = true
        force = true
        out = "made"
        [models.a]
        path = "a.pt"
        device = "A15"
        [[models.a.variants]]
        name = "small"
        quant = "palettize4"
        measure = true
        force = false
        [[models.a.variants]]
        name = "tuned"
        path = "tuned.pt2"
        device = "A16"
        [models.b]
        path = "-b.pt"
        """,
    )
    assert [(name, plan.model, plan.out) for name, plan in found.items()] == [
        ("a/small", Path("a.pt"), Path("made/a-small")),
        ("a/tuned", Path("tuned.pt2"), Path("made/a-tuned")),
        ("b", Path("-b.pt"), Path("made/b")),
    ]
    assert [(names(plan.devices), plan.measure, plan.force, plan.recipe.name) for plan in found.values()] == [
        (("A15",), True, False, "palettize4"),
        (("A16",), False, True, "float16"),
        (("A14", "M2"), False, True, "float16"),
    ]


def test_a_job_tells_the_convert_command_that_does_the_same(tmp_path):
    (job,) = read_config(
        write(tmp_path, '[models.net]\npath = "my net.pt"\ndevice = ["iPhone 12", "A14"]\nmeasure = false\n')
    ).jobs
    assert (
        job.command
        == "cidermill convert 'my net.pt' '--device=iPhone 12' --device=A14 --no-measure --out=build/net"
    )


MODEL = '[models.net]\npath = "net.pt"\n'
VARIANTS = '[models.a]\npath = "a.pt"\n[[models.a.variants]]\n'
BAD = {
    "no TOML": ("[models.net]\npath = \n", ["cidermill.toml:2:8: no TOML: Invalid value, in: path ="]),
    "TOML that ends early": (
        '[models.net]\npath = "net.pt"\ndevice = [\n',
        ["cidermill.toml:3:11: no TOML:", "device = ["],
    ),
    "a table twice": (MODEL + MODEL, ["cidermill.toml:3:12: no TOML: Cannot declare", "in: [models.net]"]),
    "nothing": ("", ["cidermill.toml names no model", "[models.encoder]"]),
    "no models": ('[defaults]\nquant = "int8"\n', ["cidermill.toml names no model"]),
    "models that are no table": ("models = 3\n", ["models is no table, but 3"]),
    "a model that is no table": ('[models]\nnet = "net.pt"\n', ["models.net is no table, but 'net.pt'"]),
    "an option above the tables": (
        'quant = "int8"\n' + MODEL,
        ["quant stands above the tables", "[defaults]"],
    ),
    "an unknown table": ('[model.net]\npath = "net.pt"\n', ["unknown table 'model'; did you mean models?"]),
    "an unknown table that is like none": (
        MODEL + "[zzz]\n",
        ["unknown table 'zzz'.", "[defaults] and [models.NAME]"],
    ),
    "a key nearly right": (
        MODEL + "min-pnsr = 30\n",
        ["[models.net]: unknown key 'min-pnsr'; did you mean min-psnr?"],
    ),
    "a key with an underscore": (
        MODEL + "min_psnr = 30\n",
        ["unknown key 'min_psnr'; did you mean min-psnr?"],
    ),
    "a key in the plural": (MODEL + 'devices = "A14"\n', ["unknown key 'devices'; did you mean device?"]),
    "the recipe by its other name": (
        MODEL + 'recipe = "int8"\n',
        ["unknown key 'recipe'; did you mean quant?"],
    ),
    "the path by its other name": (
        '[models.net]\nmodel = "net.pt"\n',
        ["unknown key 'model'; did you mean path?"],
    ),
    "a path for all": ('[defaults]\npath = "net.pt"\n' + MODEL, ["[defaults]: unknown key 'path'"]),
    "a key like none": (
        MODEL + "xyzzy = 1\n",
        ["unknown key 'xyzzy'.", "The keys here are path, variants, target, quant"],
    ),
    "a flag of the command": (MODEL + "dry-run = true\n", ["[models.net]: unknown key 'dry-run'"]),
    "a name with a dot, unquoted": (
        '[models.net.v2]\npath = "net.pt"\n',
        ["[models.net]: unknown key 'v2'", "needs quotes"],
    ),
    "a key in [defaults]": (
        "[defaults]\nquantt = 'int8'\n" + MODEL,
        ["[defaults]: unknown key 'quantt'; did you mean quant?"],
    ),
    "a key in a variant": (
        VARIANTS + "name = 'v'\nqaunt = 'int8'\n",
        ["[[models.a.variants]] v: unknown key 'qaunt'; did you mean quant?"],
    ),
    "text where a number belongs": (
        MODEL + "min-psnr = '30'\n",
        ["[models.net]: min-psnr = '30' is not a number.", "min-psnr (DB): Budget: fail"],
    ),
    "a fraction where a whole number belongs": (
        MODEL + "palettize = 4.5\n",
        ["palettize = 4.5 is not a whole number", "1, 2, 3, 4, 6 or 8"],
    ),
    "true where a number belongs": (MODEL + "palettize = true\n", ["palettize = true is not a whole number"]),
    "a number where text belongs": (
        MODEL + "quant = 8\n",
        ["quant = 8 is not text in quotes", "quant (RECIPE)"],
    ),
    "a number in a list": (MODEL + "device = ['A14', 15]\n", ["device = 15 is not text in quotes"]),
    "a list where one belongs": (
        MODEL + "quant = ['int8', 'int4']\n",
        ["quant = ['int8', 'int4'] is not text in quotes"],
    ),
    "a number where true or false belongs": (
        MODEL + "trust-pickle = 1\n",
        ["trust-pickle = 1 is not true or false", "trust-pickle = true"],
    ),
    "no text": (MODEL + "quant = ''\n", ["quant is empty"]),
    "a target that is none": (
        MODEL + "target = 'onnx'\n",
        ["[models.net]: target = 'onnx':", "coreml, executorch-mps"],
    ),
    "an option and its negation": (
        MODEL + "measure = true\nno-measure = true\n",
        ["measure and no-measure are one option"],
    ),
    "options that exclude each other": (
        "[defaults]\nquant = 'int8'\n" + MODEL + "budget = '1MB'\n",
        ["[models.net]: A recipe and a budget", "Leave --quant"],
    ),
    "a budget that is none": (
        MODEL + "budget = '12 parsecs'\n",
        ["[models.net]: --budget '12 parsecs' is no size"],
    ),
    "no path": ("[models.net]\nquant = 'int8'\n", ["[models.net]: path is missing"]),
    "an empty path": ("[models.net]\npath = ''\n", ["path = '' is no path in quotes"]),
    "a list of paths": ("[models.net]\npath = ['a', 'b']\n", ["path = ['a', 'b'] is no path"]),
    "variants as a table": (
        MODEL + "[models.net.variants]\nname = 'v'\n",
        ["variants is no list of tables, but a table", "[[models.net.variants]]"],
    ),
    "no variants": (MODEL + "variants = []\n", ["variants is no list of tables, but []"]),
    "a variant without a name": (
        VARIANTS + "quant = 'int8'\n",
        ["[[models.a.variants]]: a variant has no name"],
    ),
    "a variant with a number": (VARIANTS + "name = 4\n", ["name = 4 is not text in quotes"]),
    "a variant's name with a slash": (VARIANTS + "name = 'a/b'\n", ["'a/b' cannot be a name"]),
    "a model's name that leaves the folder": (
        "[models.'../net']\npath = 'net.pt'\n",
        ["'../net' cannot be a name"],
    ),
    "a variant twice": (
        VARIANTS + "name = 'v'\n[[models.a.variants]]\nname = 'v'\n",
        ["a/v stands there twice"],
    ),
    "one folder for two": (
        VARIANTS + "name = 'b'\n[models.a-b]\npath = 'b.pt'\n",
        ["a/b and a-b have the same output folder, build/a-b", "with out"],
    ),
    "one folder but for capitals": (
        "[models.Net]\npath = 'n.pt'\n" + MODEL,
        ["Net and net have the same output folder"],
    ),
    "a model's folder for its variants": (
        VARIANTS.replace("[[", "out = 'x'\n[[") + "name = 'v'\n[[models.a.variants]]\nname = 'w'\n",
        ["a/v and a/w have the same output folder, x"],
    ),
    "a folder in another's": (
        MODEL + "[models.b]\npath = 'b.pt'\nout = 'build/net/b'\n",
        ["of build/net and build/net/b one is in the other"],
    ),
    "the summary's place": (
        "[models.'build.json']\npath = 'net.pt'\n",
        ["the summary and build.json have the same output folder"],
    ),
}


@pytest.mark.parametrize(("text", "wanted"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, wanted):
    with pytest.raises(UserError) as caught:
        read_config(write(tmp_path, text))
    told = str(caught.value)
    assert told.startswith(str(tmp_path / "cidermill.toml"))
    for part in wanted:
        assert part in told


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"(?s)cidermill.toml does not exist.*--config.*\[models.encoder\]"):
        read_config(tmp_path / "cidermill.toml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "cidermill.toml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(UserError, match="(?s)cannot be read.*UTF-8"):
        read_config(tmp_path / "cidermill.toml")


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "cidermill.toml").write_bytes(b"\xef\xbb\xbf" + MODEL.encode())
    assert [job.name for job in read_config(tmp_path / "cidermill.toml").jobs] == ["net"]


THREE = VARIANTS + "name = 'v'\n[[models.a.variants]]\nname = 'w'\n" + MODEL


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ((), ["a/v", "a/w", "net"]),
        (("net", "a"), ["a/v", "a/w", "net"]),
        (("a/w",), ["a/w"]),
        (("a/w", "net"), ["a/w", "net"]),
    ],
)
def test_only_some_in_the_order_of_the_file(tmp_path, only, names):
    assert [job.name for job in select(read_config(write(tmp_path, THREE)), only)] == names


@pytest.mark.parametrize(
    ("only", "near"), [("nett", "; did you mean net?"), ("a/vv", "; did you mean a/v?"), ("encoder", "")]
)
def test_only_what_is_not_there(tmp_path, only, near):
    with pytest.raises(UserError) as caught:
        select(read_config(write(tmp_path, THREE)), (only,))
    assert f"--only {only!r} is not in" in str(caught.value)
    assert near in str(caught.value)
    assert "It has a, a/v, a/w, net." in str(caught.value)
