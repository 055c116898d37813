"""What a person sees of a study: it fits 80 columns, marks the front, says why a trial failed and what the
best one is."""

import json
from dataclasses import replace

import pytest

from cidermill.pipeline.report.json_files import json_text
from cidermill.pipeline.study.constraints import parse_constraints
from cidermill.pipeline.study.results import best_of, load_study
from cidermill.pipeline.terminal.study import show_best, show_study, study_result


@pytest.fixture
def shown(tmp_path, journals, capsys, monkeypatch):
    """rows -> the lines printed by `show_study`, in 80 columns."""

    def show(rows, columns=80, header=None):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_study(study_result(load_study(journals.write(tmp_path, rows, header))))
        return capsys.readouterr().out.splitlines()

    return show


def line_with(lines, text):
    return next(line for line in lines if text in line)


def test_sorted_by_size_with_the_front_marked(shown, journals):
    rows = [
        journals.row(0, recipe="float16", size_bytes=24_000_000, psnr_db=None, exact=True),
        journals.row(1, recipe="palettize4", size_bytes=6_000_000, psnr_db=28.0),
        journals.row(2, recipe="int8", size_bytes=12_000_000),
        journals.row(3, recipe="w8a8", size_bytes=12_500_000, psnr_db=30.0),
        journals.failed(4),
    ]
    lines = shown(rows)
    assert lines[1] == "net for coreml"
    order = [
        next(recipe for recipe in ("palettize4", "int8", "w8a8", "float16") if f" {recipe} " in line)
        for line in lines
        if " MB " in line
    ]
    assert order == ["palettize4", "int8", "w8a8", "float16"]
    assert ["★" in line for line in lines if " MB " in line] == [True, True, False, True]
    assert "exact" in line_with(lines, "float16") and "2.00 ms" in line_with(lines, "w8a8")
    assert line_with(lines, "int4:gptq") == "  4 int4:gptq (net, coreml): it needs samples"
    assert "★: on the front of size, PSNR and latency (iPhone 15 Pro, two digits)." in line_with(
        lines, "★: on"
    )


@pytest.mark.parametrize("metric", [None, 0.98765])
def test_it_fits_80_columns(shown, journals, metric):
    rows = [
        journals.row(index, recipe=recipe, metric=metric)
        for index, recipe in enumerate(["prune75+palettize4:group16", "int8", "x" * 90])
    ]
    lines = shown(rows, header=journals.header(eval="a:b"))
    assert max(map(len, lines[:-1])) <= 80
    assert any("metric" in line for line in lines) == (metric is not None)


def test_more_columns_where_there_is_room(shown, journals):
    assert not any("cosine" in line for line in shown([journals.row(0)]))
    assert "97 %" in line_with(shown([journals.row(0)], columns=120), "int8")


def test_a_table_for_each_model_and_target(shown, journals):
    rows = [
        journals.row(0, "a"),
        journals.row(1, "b"),
        journals.row(2, "a", target="executorch-mps"),
        journals.failed(3, "c"),
    ]
    lines = shown(rows, header=journals.header(("a", "b", "c")))
    titles = [line for line in lines if " for " in line]
    assert titles == [
        "a for coreml",
        "b for coreml",
        "a for executorch-mps",
        "c for coreml: no trial was finished",
    ]


def test_a_failing_verdict_and_its_reason(shown, journals):
    lines = shown([journals.row(0, verdict="fail", reason="logits overflow\nuse float32")])
    assert "fail" in line_with(lines, "int8")
    assert line_with(lines, "logits") == "  0 int8 (net, coreml): logits overflow"


def test_hostile_names_cannot_steer_a_terminal(shown, journals):
    bad = journals.hostile
    lines = shown(
        [journals.row(0, bad, recipe=bad), journals.failed(1, bad, reason=bad)],
        header=journals.header((bad,)),
    )
    assert "\x1b" not in "".join(lines)
    assert "<script>" in "".join(lines)


def test_constraints_that_cannot_be_met(tmp_path, journals, capsys):
    result = study_result(load_study(journals.write(tmp_path, [journals.row(0)])))
    show_study(replace(result, infeasible="size<=1MB cannot be met"))
    assert "size<=1MB cannot be met" in capsys.readouterr().out.splitlines()


def test_no_trials(shown):
    assert shown([])[-1].endswith("study.html, study.csv, study.jsonl")


def test_as_json(tmp_path, journals):
    result = study_result(load_study(journals.write(tmp_path, [journals.row(0), journals.failed(1)])))
    result = json.loads(json_text(result))
    assert (result["schema"], result["verdict"]) == ("cidermill.study/1", "pass")
    assert [(row["trial"], row["front"]) for row in result["trials"]] == [(0, True), (1, False)]


def best_lines(folder, text, capsys):
    show_best(best_of(load_study(folder), parse_constraints(text)))
    return capsys.readouterr().out.splitlines()


def test_the_best(tmp_path, journals, capsys):
    rows = [
        journals.row(0, metric=0.91),
        journals.row(1, recipe="int4; a*=int8", size_bytes=7_000_000, metric=0.9),
    ]
    folder = journals.write(tmp_path, rows, journals.header(eval="a:b"))
    lines = best_lines(folder, "size<=10MB,metric>=0.9", capsys)
    assert lines[1] == "net within size<=10MB, metric>=0.9"
    assert line_with(lines, "  recipe").split(maxsplit=1)[1] == "int4; a*=int8"
    assert line_with(lines, "  metric").split() == ["metric", "0.9"]
    assert line_with(lines, "iPhone 12").endswith("5.00 ms (2.50–10.0), estimate")
    assert lines[-1].startswith(
        "cidermill convert models/0.pt --target coreml --quant 'int4; a*=int8' --device 'iPhone 15 Pro'"
    )


def test_the_best_of_none(tmp_path, journals, capsys):
    lines = best_lines(journals.write(tmp_path, [journals.row(0)]), "size<=10MB,psnr>=40", capsys)
    assert lines[-2:] == [
        (
            "size<=10MB cannot be met: the nearest is 12.0 MB, 2.00 MB (20 %) too much, in trial 0 (int8,"
            " coreml)."
        ),
        "psnr>=40 cannot be met: the nearest is 38.2 dB, 1.8 dB too little, in trial 0 (int8, coreml).",
    ]
