"""The table of options as Python gives them values: by keyword, as text or of their type."""

from pathlib import Path

import pytest

from cidermill.models.errors import UserError
from cidermill.models.inputs import InputSpec
from cidermill.pipeline.option import parse_options
from cidermill.pipeline.options import OPTIONS
from cidermill.pipeline.plan import Plan, plan_from
from cidermill.pipeline.quantities import Budget, LatencyLimit
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation.estimate.devices import find_device

GIVEN = {
    "a whole number for a number": (dict(min_psnr=40), "min_psnr", 40.0),
    "one for several": (dict(target="executorch-mps"), "targets", ("executorch-mps",)),
    "several": (dict(device=["A17 Pro", "A14"]), "devices", (find_device("A17 Pro"), find_device("A14"))),
    "a size": (dict(max_size="12MB"), "max_size_bytes", 12e6),
    "a limit": (dict(max_latency="A14=3ms"), "max_latency", (LatencyLimit(find_device("A14"), 3.0),)),
    "a budget": (dict(budget="4.5bpw"), "budget", Budget("4.5bpw", bits_per_weight=4.5)),
    "a recipe with more": (dict(quant="int8", prune=0.5), "recipe", parse_recipe("prune50+int8")),
    "an input": (dict(input="x:1x3"), "inputs", (InputSpec("x", (1, 3)),)),
    "a path for text": (dict(samples=Path("a.npz")), "samples", "a.npz"),
    "text for a path": (dict(out="there"), "out", Path("there")),
    "samples themselves": (dict(samples=[{"x": 1}]), "samples", [{"x": 1}]),
    "a negation": (dict(no_cache=True), "cache", False),
    "nothing": (dict(min_psnr=None, quant=None), "recipe", parse_recipe("float16")),
}


@pytest.mark.parametrize(("options", "field", "value"), GIVEN.values(), ids=GIVEN)
def test_what_python_gives_arrives_parsed(options, field, value):
    assert getattr(plan_from("net.pt", options), field) == value


def test_without_options_a_plan_is_the_default_one():
    assert plan_from("net.pt", {}) == Plan(Path("net.pt"))


REFUSED = {
    "a name nearly right": (dict(min_pnsr=40), "Unknown option 'min_pnsr'; did you mean min_psnr?", "target"),
    "a name in the plural": (
        dict(devices="A14"),
        "Unknown option 'devices'; did you mean device?",
        "no_cache",
    ),
    "another name": (dict(recipe="int8"), "Unknown option 'recipe'; did you mean quant?", "quant"),
    "a name like none": (dict(xyzzy=1), "Unknown option 'xyzzy'.", "The options are target, quant"),
    "text for a number": (dict(min_psnr="40"), "min_psnr = '40' is not a number.", "min_psnr (DB)"),
    "a truth for a number": (dict(palettize=True), "palettize = True is not a whole number.", "BITS"),
    "a number for a truth": (dict(cache=1), "cache = 1 is not true or false.", "cache = true"),
    "a list for one": (dict(quant=["int8"]), "quant = ['int8'] is not text in quotes.", "quant (RECIPE)"),
    "a number among names": (
        dict(device=["A14", 15]),
        "device = 15 is not text",
        "Several stand in brackets",
    ),
    "an unknown target": (dict(target="onyx"), "target = 'onyx': 'onyx' is not one of 'coreml'", "One of:"),
    "both of a pair": (dict(cache=True, no_cache=True), "cache and no_cache are one option.", "Leave one"),
}


@pytest.mark.parametrize(("options", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused(options, message, hint):
    with pytest.raises(UserError) as caught:
        plan_from("net.pt", options)
    assert message in caught.value.message and hint in caught.value.hint


def test_what_is_needed_is_named():
    with pytest.raises(UserError, match="against is missing"):
        parse_options(OPTIONS["validate"], {})


@pytest.mark.parametrize("command", OPTIONS)
def test_names_and_fields_are_each_of_one_option(command):
    keys = [key for option in OPTIONS[command] for key in option.keys]
    fields = [option.field for option in OPTIONS[command]]
    assert len(set(keys)) == len(keys) and len(set(fields)) == len(fields)
