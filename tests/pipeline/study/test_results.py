"""Reading a journal, the Pareto front, the best trial, its command and the CSV, each against an oracle of its
own."""

import csv
import io
import json
import math
import shlex

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cidermill.models.errors import UserError
from cidermill.pipeline.commands.cli import convert, main
from cidermill.pipeline.report.json_files import to_builtins
from cidermill.pipeline.study.constraints import parse_constraints
from cidermill.pipeline.study.records import StudyRow
from cidermill.pipeline.study.results import (
    best,
    best_of,
    convert_command,
    csv_text,
    first_latency_ms,
    front,
    latency_text,
    load_study,
    write_csv,
)


def test_rows_come_back_in_the_order_of_their_numbers(tmp_path, journals):
    study = load_study(journals.write(tmp_path, [journals.row(2), journals.failed(0), journals.row(1)]))
    assert [row.trial for row in study.rows] == [0, 1, 2]
    assert to_builtins(study.header) == journals.header()
    assert (study.models, study.devices, study.goal) == (["net"], ["iPhone 15 Pro", "iPhone 12"], "maximize")


@pytest.mark.parametrize("cut", [0, 1, 30, 200])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, journals, cut):
    path = journals.write(tmp_path, [journals.row(0), journals.row(1)]) / "study.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: -1 - cut])
    assert [row.trial for row in load_study(tmp_path).rows] == [0]


def test_of_two_rows_of_one_trial_the_later_counts(tmp_path, journals):
    study = load_study(journals.write(tmp_path, [journals.failed(0), journals.row(0, psnr_db=12.0)]))
    assert [row.psnr_db for row in study.rows] == [12.0]


def test_nan_is_no_figure(tmp_path, journals):
    study = load_study(journals.write(tmp_path, [journals.row(0, psnr_db=math.nan, metric=math.inf)]))
    assert study.rows[0].psnr_db is None and study.rows[0].metric is None


def test_a_latency_that_is_no_number_is_not_known(tmp_path, journals):
    latency = [{"device": "M2", "chip": "M2", "ms": math.inf, "low_ms": 1.0, "high_ms": math.nan}]
    (row,) = load_study(journals.write(tmp_path, [journals.row(0, latency=latency)])).rows
    assert (first_latency_ms(row), latency_text(row.latencies[0])) == (math.inf, "–")


def damage(line, text):
    def change(path):
        lines = path.read_text().splitlines()
        lines[line] = text
        path.write_text("\n".join(lines) + "\n")

    return change


DAMAGED = {
    "a line in the middle": (damage(2, '{"trial": 1, "mod'), ["damaged in line 3", "Remove line 3"]),
    "a list": (damage(2, "[1]"), ["damaged in line 3: not an object"]),
    "a trial without a number": (
        damage(2, '{"model": "a", "recipe": "b"}'),
        ["damaged in line 3: a trial without trial, target, state"],
    ),
    "a figure that is text": (
        damage(
            2,
            '{"trial": 1, "model": "a", "target": "b", "recipe": "c", "state": "done", "size_bytes": "big"}',
        ),
        ["damaged in line 3: size_bytes is 'big', no number"],
    ),
    "a state that is none": (
        damage(2, '{"trial": 1, "model": "a", "target": "b", "recipe": "c", "state": "paused"}'),
        ["damaged in line 3: Invalid enum value 'paused' - at `$.state`", "Remove line 3"],
    ),
    "a latency in words": (
        damage(
            2,
            '{"trial": 1, "model": "a", "target": "b", "recipe": "c", "state": "done", "latency": ["fast"]}',
        ),
        ["damaged in line 3", "at `$.latency[0]`", "Remove line 3"],
    ),
    "a header whose models are words": (
        damage(0, '{"schema": "cidermill.study/1", "version": "1", "models": ["net"]}'),
        ["damaged in line 1: not a header of schema cidermill.study/1"],
    ),
    "another schema": (
        damage(0, '{"schema": "cidermill.report/1"}'),
        ["damaged in line 1: not a header of schema cidermill.study/1"],
    ),
    "a header without models": (damage(0, '{"schema": "cidermill.study/1"}'), ["damaged in line 1"]),
    "a newer schema": (
        damage(0, '{"schema": "cidermill.study/2"}'),
        [
            "written by a newer cidermill",
            "schema cidermill.study/2, this one reads cidermill.study/1",
            "Update",
        ],
    ),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\n" * 5), ["damaged in line 1"]),
    "an empty file": (lambda path: path.write_bytes(b""), ["holds no study yet", "it resumes"]),
    "a header that was cut off": (
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        ["holds no study yet"],
    ),
    "no journal": (
        lambda path: path.unlink(),
        ["is no study: it has no study.jsonl", "cidermill study MODEL --out DIR"],
    ),
}


@pytest.mark.parametrize(("change", "said"), DAMAGED.values(), ids=DAMAGED)
def test_damaged(tmp_path, journals, change, said):
    change(journals.write(tmp_path, [journals.row(0), journals.row(1), journals.row(2)]) / "study.jsonl")
    with pytest.raises(UserError) as error:
        load_study(tmp_path)
    assert all(part in str(error.value) for part in said), str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        load_study(tmp_path / "nowhere")


# The front

figures = st.one_of(st.none(), st.integers(0, 4).map(float))
trials = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["a", "b"]),
        "target": st.sampled_from(["coreml", "executorch-mps"]),
        "size_bytes": st.integers(1, 5),
        "psnr_db": figures,
        "exact": st.booleans(),
        "metric": figures,
        "ms": figures,
        "state": st.sampled_from(["done", "done", "done", "failed"]),
        "verdict": st.sampled_from(["pass", "pass", "pass", "fail", None]),
    }
)


def as_rows(drawn, with_metric=True):
    rows = []
    for number, trial in enumerate(drawn):
        trial = dict(trial)
        ms = trial.pop("ms")
        latency = (
            [
                {
                    "device": "iPhone 12",
                    "chip": "A14",
                    "ms": ms,
                    "low_ms": ms,
                    "high_ms": ms,
                    "source": "estimate",
                }
            ]
            if ms is not None
            else []
        )
        rows.append(
            {
                **trial,
                "trial": number,
                "recipe": "int8",
                "latency": latency,
                "metric": trial["metric"] if with_metric else None,
            }
        )
    return rows


def records(rows):
    return msgspec.convert(rows, list[StudyRow])


def goodness(row, rival, goal):
    """(smaller, more exact, faster) as three numbers to be maximized, by the words of the definition; None:
    it cannot be judged."""
    judged_by_metric = any(one["metric"] is not None for one in rival)
    if judged_by_metric:
        error = row["metric"]
        sign = 1 if goal == "maximize" else -1
    else:
        error, sign = (1000.0 if row["exact"] else row["psnr_db"]), 1
    if error is None:
        return None
    return -row["size_bytes"], sign * error, -(row["latency"][0]["ms"] if row["latency"] else 10**9)


@given(st.lists(trials, max_size=9), st.sampled_from(["maximize", "minimize"]), st.booleans())
def test_front_against_brute_force(drawn, goal, with_metric):
    rows = as_rows(drawn, with_metric)
    wanted = set()
    for row in rows:
        peers = [one for one in rows if (one["model"], one["target"]) == (row["model"], row["target"])]
        peers = [one for one in peers if one["state"] == "done" and one["verdict"] == "pass"]
        mine = goodness(row, peers, goal)
        if row not in peers or mine is None:
            continue
        others = [theirs for one in peers if (theirs := goodness(one, peers, goal)) is not None]
        beaten = [
            theirs
            for theirs in others
            if all(t >= m for t, m in zip(theirs, mine)) and any(t > m for t, m in zip(theirs, mine))
        ]
        if not beaten:
            wanted.add(row["trial"])
    assert front(records(rows), goal) == wanted


def test_a_front_of_known_trials(journals):
    rows = [
        journals.row(0, size_bytes=100, psnr_db=60.0),
        journals.row(1, size_bytes=50, psnr_db=40.0),
        journals.row(2, size_bytes=60, psnr_db=39.0),  # larger and worse than 1
        journals.row(3, size_bytes=10, psnr_db=90.0, verdict="fail"),
        journals.row(4, size_bytes=200, psnr_db=200.0),  # where decibels are cut, so exact
        journals.row(5, size_bytes=250, psnr_db=None, exact=True),  # exact as well, and larger
        journals.failed(6),
        journals.row(7, target="executorch-mps", size_bytes=300, psnr_db=5.0),  # alone for its target
    ]
    assert front(journals.records(rows)) == {0, 1, 4, 7}
    faster = [{**rows[2]["latency"][0], "ms": 0.1}]
    assert front(journals.records([*rows[:2], {**rows[2], "latency": faster}])) == {0, 1, 2}
    hardly = [{**rows[2]["latency"][0], "ms": 1.99}]  # of an estimate of 2.0: as good
    assert front(journals.records([*rows[:2], {**rows[2], "latency": hardly}])) == {0, 1}


# The best


@given(
    st.lists(trials, max_size=9),
    st.integers(1, 5),
    st.floats(0, 4),
    st.sampled_from(["maximize", "minimize"]),
)
def test_best_against_brute_force(drawn, size, decibels, goal):
    rows = as_rows([{**trial, "model": "a"} for trial in drawn])
    found = best(records(rows), parse_constraints(f"size<={size}B,psnr>={decibels}"), goal)
    feasible = [
        row
        for row in rows
        if row["state"] == "done" and row["verdict"] == "pass" and row["size_bytes"] <= size
    ]
    feasible = [
        row for row in feasible if row["exact"] or (row["psnr_db"] is not None and row["psnr_db"] >= decibels)
    ]
    judged = [(goodness(row, rows, goal), row) for row in feasible if goodness(row, rows, goal) is not None]
    if not judged:
        assert found is None
    else:
        (chosen,) = [row for row in feasible if row["trial"] == found.trial]
        mine = goodness(chosen, rows, goal)
        assert (mine[1], mine[0], mine[2]) == max((theirs[1], theirs[0], theirs[2]) for theirs, _ in judged)


WHAT_IS_BEST = [
    ("psnr>=30", 1),
    ("psnr>=20", 0),
    ("psnr>=30,size<=9MB", 2),
    ("ane_share>=0.5", 2),
    ("cosine>=0.5,ane_share>=0.5", 0),
]
WHAT_IS_BEST += [("latency<=9ms,psnr>=30", 2)]


@pytest.mark.parametrize(("text", "wanted"), WHAT_IS_BEST)
def test_best_is_the_smallest_where_only_quality_is_asked(journals, text, wanted):
    """The smallest error would always be the largest trial."""
    rows = [
        journals.row(index, size_bytes=size, psnr_db=psnr)
        for index, (size, psnr) in enumerate([(3_000_000, 25.0), (4_000_000, 35.0), (9_000_000, 70.0)])
    ]
    assert best(journals.records(rows), parse_constraints(text)).trial == wanted


def test_best_of_each_model_with_its_command(tmp_path, journals):
    rows = [
        journals.row(0, "a", recipe="int8", size_bytes=10_000_000, psnr_db=40.0),
        journals.row(1, "a", recipe="int4; lm_head*=int8", size_bytes=9_000_000, psnr_db=40.0),
        journals.row(2, "b", recipe="int8", size_bytes=13_000_000, psnr_db=90.0),
    ]
    study = load_study(journals.write(tmp_path, rows, journals.header(("a", "b"))))
    found = best_of(study, parse_constraints("size<=12MB"))
    assert found.verdict == "fail"
    first, second = found.models
    assert first.trial.trial == 1  # as exact as 0, and smaller
    wanted = [
        "cidermill",
        "convert",
        "models/0.pt",
        "--target",
        "coreml",
        "--quant",
        "int4; lm_head*=int8",
        "--device",
        "iPhone 15 Pro",
        "--device",
        "iPhone 12",
    ]
    assert shlex.split(first.command) == wanted
    assert (
        second.infeasible
        == "size<=12MB cannot be met: the nearest is 13.0 MB, 1.00 MB (8.3 %) too much, in trial 2 (int8,"
        " coreml)."
    )


def test_the_command_has_the_options_that_are_not_the_default(tmp_path, journals):
    options = {
        "samples": "my samples.npz",
        "input": ["a:1x3", "b:1x4"],
        "deployment-target": "iOS18",
        "model-class": None,
        "trust-pickle": True,
    }
    study = load_study(
        journals.write(tmp_path, [journals.row(0)], journals.header(devices=[], options=options))
    )
    wanted = [
        "cidermill",
        "convert",
        "models/0.pt",
        "--target",
        "coreml",
        "--quant",
        "int8",
        "--samples",
        "my samples.npz",
    ]
    wanted += ["--input", "a:1x3", "--input", "b:1x4", "--trust-pickle"]
    assert convert_command(study, study.rows[0]) == wanted
    study.header.options["deployment-target"] = "iOS17"
    assert convert_command(study, study.rows[0])[-3:] == ["--deployment-target", "iOS17", "--trust-pickle"]


def test_the_command_makes_the_same_artifact_again(converted, tmp_path):
    study = load_study(converted)
    row = best(study.rows, parse_constraints("size<=16MB"))
    command = shlex.split(shlex.join(convert_command(study, row)))
    result = CliRunner().invoke(convert, [*command[2:], "--out", str(tmp_path / "again"), "--json"])
    assert result.exit_code == 0, result.output
    trial = json.loads((converted / row.report).with_name("report.json").read_text())
    assert json.loads(result.stdout)["artifacts"][0]["sha256"] == trial["artifacts"][0]["sha256"]


BEST = {
    "met": (
        ["--best", "size<=12MB"],
        0,
        ["net within size<=12MB", "cidermill convert models/0.pt --target coreml --quant int8"],
    ),
    "not met": (
        ["--best", "size<=1MB"],
        1,
        ["size<=1MB cannot be met: the nearest is 12.0 MB, 11.0 MB (1100 %) too much"],
    ),
    "no constraint": (["--best", "sise<=1MB"], 2, ["did you mean size?"]),
    "a device that was not studied": (
        ["--best", "latency[M2]<=1ms"],
        2,
        ["no latency for M2; it has iPhone 15 Pro, iPhone 12", '--device "M2"'],
    ),
}


@pytest.mark.parametrize(("options", "code", "said"), BEST.values(), ids=BEST)
def test_best_on_the_command_line(tmp_path, journals, options, code, said):
    folder = journals.write(tmp_path, [journals.row(0)])
    result = CliRunner().invoke(main, ["study", str(folder), *options])
    assert result.exit_code == code, result.output
    assert all(" ".join(part.split()) in " ".join(result.output.split()) for part in said), result.output
    as_json = CliRunner().invoke(main, ["study", str(folder), *options, "--json"])
    assert as_json.exit_code == code
    if code < 2:
        assert json.loads(as_json.stdout)["verdict"] == ("pass", "fail")[code]


def test_a_study_is_shown_again(tmp_path, journals):
    folder = journals.write(tmp_path, [journals.row(0), journals.failed(1)])
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(main, ["study", str(folder)])
    assert result.exit_code == 0 and "1 int4:gptq (net, coreml): it needs samples" in result.stdout
    as_json = json.loads(CliRunner().invoke(main, ["study", str(folder), "--json"]).stdout)
    assert [row["front"] for row in as_json["trials"]] == [True, False]
    assert sorted(tmp_path.iterdir()) == before


def test_best_of_a_folder_that_is_no_study(tmp_path):
    result = CliRunner().invoke(main, ["study", str(tmp_path), "--best", "size<=1MB"])
    assert result.exit_code == 2 and "has no study.jsonl" in result.stderr


# The table


def test_csv_has_every_trial_and_no_clock(tmp_path, journals):
    rows = [journals.row(1, psnr_db=None, exact=True, recipe='a,"b"\nc'), journals.failed(0)]
    study = load_study(journals.write(tmp_path / "a", rows))
    read = list(csv.DictReader(io.StringIO(csv_text(study))))
    assert [one["trial"] for one in read] == ["0", "1"]
    assert (
        read[0] | {"state": "failed", "reason": "it needs samples", "size_bytes": "", "front": "0"} == read[0]
    )
    assert read[1]["psnr_db"] == "inf" and read[1]["recipe"] == 'a,"b"\nc' and read[1]["front"] == "1"
    assert (read[1]["ms iPhone 12"], read[1]["low_ms iPhone 12"], read[1]["high_ms iPhone 15 Pro"]) == (
        "5.0",
        "2.5",
        "4.0",
    )
    later = [{**row, "seconds": 99.0, "peak_rss_bytes": 7} for row in reversed(rows)]
    path = write_csv(journals.write(tmp_path / "b", later))
    assert path == tmp_path / "b" / "study.csv"
    assert path.read_bytes() == csv_text(study).encode()


def test_csv_of_a_study_without_trials(tmp_path, journals):
    assert csv_text(load_study(journals.write(tmp_path, []))).startswith(
        "trial,model,target,recipe,state,verdict,front,size_bytes,"
    )
