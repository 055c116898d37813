"""Constraints: what is read, what is refused in which words, by how much a trial breaks one, and why none
keeps them all."""

import math

import msgspec
import pytest

from cidermill.models.errors import UserError
from cidermill.pipeline.study.constraints import describe_infeasible, parse_constraints, violation
from cidermill.pipeline.study.records import StudyRow


def row(trial=0, **changes):
    latency = [
        {
            "device": "iPhone 15 Pro",
            "chip": "A17 Pro",
            "ms": 2.0,
            "low_ms": 1.5,
            "high_ms": 3.0,
            "source": "estimate",
        },
        {
            "device": "iPhone 12",
            "chip": "A14",
            "ms": 5.0,
            "low_ms": 4.0,
            "high_ms": 7.0,
            "source": "estimate",
        },
    ]
    figures = {
        "size_bytes": 12_000_000,
        "bits_per_weight": 8.0,
        "psnr_db": 30.0,
        "cosine": 0.99,
        "metric": 0.9,
        "ane_share": 0.95,
    }
    content = {
        "trial": trial,
        "model": "m",
        "target": "coreml",
        "recipe": "int8",
        "state": "done",
        "verdict": "pass",
        "reason": "",
        **figures,
        "latency": latency,
        **changes,
    }
    return msgspec.convert(content, StudyRow)


READ = {
    "size<=12MB": ("size", "", "<=", 12e6),
    "size <= 800 kB": ("size", "", "<=", 800e3),
    "Size<=1.5MiB": ("size", "", "<=", 1.5 * 2**20),
    "size≤12MB": ("size", "", "<=", 12e6),
    "psnr>=30": ("psnr", "", ">=", 30.0),
    "psnr >= 30 dB": ("psnr", "", ">=", 30.0),
    "cosine>=0.999": ("cosine", "", ">=", 0.999),
    "ane_share>=95%": ("ane_share", "", ">=", 0.95),
    "metric>=98.5%": ("metric", "", ">=", 0.985),
    "metric<=1e-3": ("metric", "", "<=", 1e-3),
    "metric>=-2": ("metric", "", ">=", -2.0),
    "bits<=4.5bpw": ("bits", "", "<=", 4.5),
    "latency<=500us": ("latency", "", "<=", 0.5),
    "latency[iPhone 15 Pro]<=2ms": ("latency", "iPhone 15 Pro", "<=", 2.0),
    "latency[iphone15pro]<=2ms": ("latency", "iPhone 15 Pro", "<=", 2.0),
    "latency[a14] <= 0.002 s": ("latency", "A14", "<=", 2.0),
}


@pytest.mark.parametrize(("text", "wanted"), READ.items(), ids=READ)
def test_read(text, wanted):
    (found,) = parse_constraints(text)
    assert (found.quantity, found.device, found.relation, found.bound) == wanted
    assert found.text == text


def test_several_by_commas_or_one_by_one():
    one = parse_constraints("size<=12MB, psnr>=30,size<=12MB,")
    assert [constraint.text for constraint in one] == ["size<=12MB", "psnr>=30"]
    assert parse_constraints(["size<=12MB", "psnr>=30"]) == one
    assert [constraint.quantity for constraint in parse_constraints("latency[iPhone, 12]<=2ms,psnr>=3")] == [
        "latency",
        "psnr",
    ]


REFUSED = {
    "": ["No constraint was given", 'Write for example "size<=12MB"'],
    "psnr": ["'psnr' is no constraint", "a quantity, <= or >=, and a number"],
    "psnr>=": ["'psnr>=' is no constraint"],
    "sise<=12MB": [
        "unknown quantity 'sise'",
        "size, bits, psnr, cosine, metric, ane_share, latency",
        "did you mean size?",
    ],
    "ane-share>=1": ["unknown quantity 'ane-share'", "did you mean ane_share?"],
    "size<=12": ["a unit is missing", "B, kB, MB, GB, KiB, MiB, GiB"],
    "size<=12MX": ["unknown unit 'mx'"],
    "cosine>=0.9x": ["unknown unit 'x'", "a plain number"],
    "latency<=2": ["a unit is missing", "us, µs, ms, s"],
    "size>=3MB": ["asks for the worse", "the smaller the better", "Write 'size<=3MB'"],
    "psnr<=30": ["asks for the worse", "the larger the better", "Write 'psnr>=30'"],
    "size<12MB": ["'<' is no relation", "<= for size"],
    "metric==1": ["'==' is no relation", "<= and >= for metric"],
    "psnr>=1.2.3": ["'1.2.3' is no number"],
    "psnr>=1e400": ["must be finite"],
    "cosine>=2": ["between 0 and 1, and 2 does not"],
    "size<=0MB": ["the bound must be above 0"],
    "psnr[iPhone 12]>=3": ["the same on every device", "Leave [iPhone 12] out"],
    "latency[]<=2ms": ["the brackets name no device"],
    "latency[iPhone 99]<=2ms": ["unknown device 'iPhone 99'", "iPhone X"],
}


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=REFUSED)
def test_refused(text, said):
    with pytest.raises(UserError) as error:
        parse_constraints(text)
    assert all(part in str(error.value) for part in said), str(error.value)


def test_a_device_that_the_study_did_not_estimate_for():
    assert parse_constraints("latency[A17 Pro]<=2ms", ["iPhone 15 Pro"])[0].device == "A17 Pro"
    with pytest.raises(UserError) as error:
        parse_constraints("latency[iPhone 12]<=2ms", ["iPhone 15 Pro", "M2"])
    assert "no latency for iPhone 12; it has iPhone 15 Pro, M2" in str(error.value)
    assert '--device "iPhone 12"' in str(error.value)


VIOLATIONS = [
    ("size<=12MB", {}, 0.0),
    ("size<=10MB", {}, 0.2),
    ("psnr>=40", {}, 0.25),
    ("psnr>=40", {"psnr_db": None}, math.inf),
    ("psnr>=40", {"psnr_db": None, "exact": True}, 0.0),
    ("latency<=1ms", {}, 1.0),
    ("latency[iPhone 12]<=4ms", {}, 0.25),
    ("latency[A14]<=4ms", {}, 0.25),
    ("latency[A14]<=4ms", {"latency": []}, math.inf),
    ("latency<=4ms", {"latency": None}, math.inf),
    ("metric>=0", {"metric": -0.5}, 0.5),
    ("metric<=0.6", {}, 0.5),
    ("metric>=0.6", {"metric": None}, math.inf),
    ("metric>=0.6", {"metric": math.nan}, math.inf),
    ("ane_share>=95%", {}, 0.0),
    ("ane_share>=0.5", {"ane_share": 0.0}, 1.0),
    ("bits<=4", {}, 1.0),
    ("cosine>=0.99", {}, 0.0),
]


@pytest.mark.parametrize(("text", "changes", "wanted"), VIOLATIONS)
def test_violation(text, changes, wanted):
    (constraint,) = parse_constraints(text)
    assert violation(constraint, row(**changes)) == pytest.approx(wanted)


def test_a_failed_row_has_no_figures():
    failed = StudyRow(4, "m", "coreml", "int4", "failed", "no")
    for constraint in parse_constraints(
        "size<=12MB,bits<=4,psnr>=3,cosine>=0.1,metric>=0,ane_share>=0,latency<=1s"
    ):
        assert violation(constraint, failed) == math.inf


def describe(rows, text):
    return describe_infeasible(rows, parse_constraints(text))


def test_feasible_says_nothing():
    assert describe([row(), row(1, size_bytes=1)], "size<=1MB") == ""


def test_one_that_cannot_be_met_names_the_nearest():
    rows = [
        row(3, size_bytes=15_000_000),
        row(5, recipe="int4", size_bytes=13_000_000),
        row(6, size_bytes=1, verdict="fail"),
    ]
    assert (
        describe(rows, "size<=10MB, psnr>=20")
        == "size<=10MB cannot be met: the nearest is 13.0 MB, 3.00 MB (30 %) too much, in trial 5 (int4,"
        " coreml)."
    )
    assert "29.0 dB, 1.0 dB too little, in trial 2" in describe([row(2, psnr_db=29)], "psnr>=30")


def test_each_that_cannot_be_met_has_its_sentence():
    said = describe([row()], "size<=10MB,psnr>=40,cosine>=0.9").splitlines()
    assert [line.split(" cannot")[0] for line in said] == ["size<=10MB", "psnr>=40"]


def test_those_that_exclude_each_other_are_named_and_no_others():
    rows = [
        row(1, size_bytes=2_000_000, psnr_db=20.0),
        row(2, recipe="int6", size_bytes=8_800_000, psnr_db=45.0),
    ]
    said = describe(rows, "cosine>=0.9,size<=8MB,bits<=9,psnr>=40")
    assert (
        said
        == "size<=8MB and psnr>=40 cannot be met together: trial 2 (int6, coreml) comes nearest; it meets"
        " psnr>=40 and has 8.80 MB, 800 kB (10 %) too much, where size<=8MB is asked."
    )


def test_three_that_only_exclude_each_other_together():
    good = {"size_bytes": 1, "psnr_db": 90.0, "cosine": 1.0}
    bad = {"size_bytes": 9_000_000, "psnr_db": 29.0, "cosine": 0.5}
    rows = [row(index, **{**good, key: bad[key]}) for index, key in enumerate(good)]
    said = describe(rows, "size<=8MB,psnr>=30,cosine>=0.9")
    assert said.startswith(
        "size<=8MB, psnr>=30 and cosine>=0.9 cannot be met together: trial 1 (int8, coreml) comes nearest"
    )


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        (
            "metric>=0.9",
            {"metric": None},
            "metric>=0.9 cannot be met: there is no metric (--eval gives one) in every trial that passed.",
        ),
        ("latency[M2]<=9ms", {}, "there is no latency for M2 (--device gives one)"),
        ("psnr>=3", {"psnr_db": None}, "psnr is not known"),
    ],
)
def test_unknown_figures_are_said_to_be_unknown(text, changes, said):
    assert said in describe([row(**changes)], text)


def test_nothing_passed():
    rows = [row(verdict="fail"), row(1, state="failed", verdict=None)]
    assert (
        describe(rows, "size<=12MB") == "No trial passed: 1 could not be finished, 1 had a failing verdict."
    )
    assert describe([], "size<=12MB") == "There are no trials yet."
