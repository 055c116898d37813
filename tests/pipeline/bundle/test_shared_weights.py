"""Weights that several models hold stand once, and every function answers what its own package did."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cidermill.pipeline.bundle.deliverables import read_models
from cidermill.pipeline.bundle.packing import pack
from cidermill.pipeline.bundle.shared_weights import (
    differences,
    function_names,
    merge,
    proposals,
    weights_of,
)
from cidermill.validation import open_runner

# function -> package
PACKAGES = {"small": "half/net.mlpackage", "wide": "wide/wide.mlpackage", "other": "other/other.mlpackage"}
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def merged(converted, tmp_path_factory):
    path = tmp_path_factory.mktemp("merged") / "all.mlpackage"
    merge([(name, converted / package) for name, package in PACKAGES.items()], path)
    return path


@pytest.mark.parametrize(
    ("function", "package", "size"),
    [
        ("small", "half/net.mlpackage", 8),
        ("wide", "wide/wide.mlpackage", 16),
        ("other", "other/other.mlpackage", 8),
    ],
)
def test_a_function_answers_what_its_package_did(merged, converted, function, package, size):
    for seed in range(3):
        picture = np.random.default_rng(seed).standard_normal((1, 3, size, size), dtype=np.float32)
        alone = open_runner(converted / package, host="reference")({"input": picture})
        together = open_runner(merged, host="reference", function=function)({"input": picture})
        assert {name: array.tobytes() for name, array in alone.items()} == {
            name: array.tobytes() for name, array in together.items()
        }


def test_the_weights_are_stored_as_coremltools_would(merged, converted, ct, tmp_path):
    """save_multifunction removes equal weights by itself: the file must be the one that we write, and so must
    what describes the functions."""
    described = ct.utils.MultiFunctionDescriptor()
    for name, package in PACKAGES.items():
        # it writes into the packages that it reads
        shutil.copytree(converted / package, tmp_path / name / "own.mlpackage")
        described.add_function(str(tmp_path / name / "own.mlpackage"), "main", name)
    described.default_function_name = "small"
    ct.utils.save_multifunction(described, str(tmp_path / "theirs.mlpackage"))
    assert (merged / WEIGHTS).read_bytes() == (tmp_path / "theirs.mlpackage" / WEIGHTS).read_bytes()
    ours, theirs = (ct.utils.load_spec(str(path)) for path in (merged, tmp_path / "theirs.mlpackage"))
    assert ours.specificationVersion == theirs.specificationVersion
    assert ours.description.defaultFunctionName == theirs.description.defaultFunctionName
    assert list(ours.description.functions) == list(theirs.description.functions)
    assert not ours.description.input and not ours.description.output
    assert ours.mlProgram.functions.keys() == theirs.mlProgram.functions.keys()


def test_only_what_differs_is_added(merged, converted):
    """The backbone of `other` is already there: its own layers are 81 + 3 and 1500 + 5 half-precision values,
    and a record each."""
    alone = (converted / PACKAGES["small"] / WEIGHTS).stat().st_size
    assert 0 < (merged / WEIGHTS).stat().st_size - alone < 2 * (81 + 3 + 1500 + 5) + 4 * 128
    assert (converted / PACKAGES["other"] / WEIGHTS).stat().st_size > 30_000


def test_a_difference_in_one_bit_is_found(merged, converted, tmp_path):
    package = converted / "half" / "net.mlpackage"
    assert differences("small", package, merged) == ""
    broken = shutil.copytree(merged, tmp_path / "broken.mlpackage")
    data = bytearray((broken / WEIGHTS).read_bytes())
    data[64 + 64] ^= 1  # the lowest bit of the first weight
    (broken / WEIGHTS).write_bytes(data)
    assert "differs" in differences("small", package, broken)


def test_other_weights_are_strangers(converted):
    models = read_models([str(converted / name) for name in ("half", "int8")], allow_failed=False)
    variants = [one for one in models[0].variants if one.is_package]
    assert proposals(variants, [weights_of(one.path) for one in variants]) == []


@pytest.mark.parametrize("names", [("old", "oldwide"), ("old", "wide")])
def test_why_weights_stay_separate(converted, tmp_path, cidermill, names):
    result = cidermill("bundle", *(converted / name for name in names), "--out", tmp_path / "a", "--json")
    (shared,) = json.loads(result.stdout)["sharing"]
    assert (
        shared["stored"] == "separately"
        and "need --deployment-target iOS18" in shared["reason"]
        and shared["shared_bytes"] > 30_000
    )
    assert len(list((tmp_path / "a").rglob("weight.bin"))) == 2


def test_a_bundle_holds_shared_weights_once(converted, tmp_path, cidermill):
    result = cidermill("bundle", converted / "half", converted / "wide", "--out", tmp_path / "a", "--json")
    (shared,) = json.loads(result.stdout)["sharing"]
    assert (
        shared["stored"] == "once"
        and shared["resource"] == "net-shared.mlpackage"
        and shared["variants"] == ["net/float16", "wide/float16"]
    )
    assert len(list((tmp_path / "a").rglob("weight.bin"))) == 1


def test_a_merge_that_is_not_what_it_should_be_is_dropped(converted, tmp_path, monkeypatch):
    """Functions in the wrong order of packages: the proof must find it, and the packages are then shipped as
    they are."""
    from cidermill.pipeline.bundle import packing

    monkeypatch.setattr(
        packing,
        "merge",
        lambda members, out: merge([(members[0][0], members[1][1]), (members[1][0], members[0][1])], out),
    )
    models = read_models([str(converted / name) for name in ("half", "wide")], allow_failed=False)
    packed = pack([replace(one) for one in models], tmp_path / "resources", lambda label: None)
    assert packed.sharing[0].stored == "separately"
    assert "is not what its package was" in packed.sharing[0].reason
    assert sorted(path.name for path in (tmp_path / "resources").iterdir()) == [
        "net-float16-mps.pte",
        "net-float16.mlpackage",
        "wide-float16.mlpackage",
    ]


def test_function_names_are_ones_of_mil():
    names = function_names(
        [("net", "float16"), ("net", "float16"), ("2 fast", "int4:block32"), ("日本", "a")]
    )
    assert names == ["net_float16", "net_float16_2", "_2_fast_int4_block32", "a"]
