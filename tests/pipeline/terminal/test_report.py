import io
import re
import sys
from dataclasses import replace

import pytest
from rich.cells import cell_len

from cidermill.models.errors import UserError
from cidermill.pipeline.report.records import Comparison
from cidermill.pipeline.report.write import html_text
from cidermill.pipeline.terminal import report as terminal
from cidermill.pipeline.terminal.console import show_error
from cidermill.validation.records import PER_BLOCK, Compression, UnitShare

ESCAPE = "\x1b"


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def words(text: str) -> str:
    return " ".join(text.split())


def test_report_shows_every_figure_with_its_unit(sample_report, tmp_path, capsys):
    terminal.show_report(sample_report, tmp_path)
    out, err = capsys.readouterr()
    assert ESCAPE not in out and not err
    for text in (
        "coreml",
        "int4:block32",
        "87.3 MB",
        "4.0x smaller",
        "66.8 dB",
        "36.1 dB",
        "cos 0.9983",
        "ANE 93 %",
        "GPU 100 %",
        "iPhone 15 Pro",
    ):
        assert text in out
    assert (
        "4.12 ms (2.88–5.97)" in out and "Latency: estimate with its band" in out and "at least 40 dB" in out
    )
    assert "pass" in out and "fail" in out and "should not be shipped" in out
    assert f"Files in {tmp_path}: vit-base.mlpackage, vit-base.pte, report.json, report.html" in out


def test_blocks_that_keep_operations_off_the_engine(sample_report, tmp_path, capsys):
    first, *others = sample_report.artifacts
    ops = first.placement.ops
    advice = "a scale per channel (int4:per-channel, int8) runs there"
    ops = tuple(replace(op, unit="gpu", reason=PER_BLOCK, advice=advice) for op in ops[:2]) + ops[2:]
    placed = replace(first, placement=replace(first.placement, ops=ops))
    terminal.show_report(replace(sample_report, artifacts=(placed, *others)), tmp_path)
    out = words(capsys.readouterr().out)
    assert "2 operations leave the Neural Engine of iPhone 15 Pro: weight quantized per block." in out
    assert "A scale per channel (int4:per-channel, int8) runs there." in out
    terminal.show_report(sample_report, tmp_path)
    assert "per block" not in capsys.readouterr().out


@pytest.mark.parametrize("partitions, outside, line", [
    (1, 0, ""),
    (1, 1, "1 MPS partition, 1 operation beside it on the CPU"),
    (3, 5, "3 MPS partitions, 5 operations beside them on the CPU"),
])  # fmt: skip
def test_a_program_that_is_cut_says_into_how_many(sample_report, tmp_path, capsys, partitions, outside, line):
    first, second = sample_report.artifacts
    placement = replace(second.placement, units={"cpu": UnitShare(outside, 0.1, 0.1)}, partitions=partitions)
    report = replace(sample_report, artifacts=(first, replace(second, placement=placement)))
    terminal.show_report(report, tmp_path)
    out = words(capsys.readouterr().out)
    assert ("MPS partition" in out) == bool(line)
    assert f"executorch-mps int4:block32: {line}" in out or not line
    assert ("MPS partition" in html_text(report)) == bool(line)


def test_warnings_say_what_to_do(sample_report, tmp_path, capsys):
    terminal.show_report(sample_report, tmp_path)
    out = words(capsys.readouterr().out)
    assert (
        "! executorch-mps int4:block32: logits overflows float16 in 2 places. → Convert with --quant float32"
        in out
    )


@pytest.mark.parametrize("columns", [40, 60, 76, 80, 100, 120, 200])
def test_any_width(sample_report, tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal.show_report(sample_report, tmp_path)
    out = capsys.readouterr().out
    table = out.split("\n!")[0]
    assert max(map(cell_len, table.splitlines())) <= columns
    for text in (
        "executorch-mps",
        "int4:block32",
        "87.3 MB",
        "4.0x smaller",
        "66.8 dB",
        "36.1 dB",
        "0.9983",
        "ANE 93 %",
        "iPhone 15 Pro",
        "fail",
    ):
        assert text in table


def test_one_line_per_artifact_where_there_is_room(sample_report, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    terminal.show_report(sample_report, tmp_path)
    lines = [row for row in capsys.readouterr().out.splitlines() if row.strip().startswith("coreml")]
    assert len(lines) == 1 and "87.3 MB" in lines[0] and lines[0].rstrip().endswith("pass")


def test_a_report_of_empty_programs(sample_report, tmp_path, capsys):
    artifacts = [
        replace(
            artifact,
            validation=replace(artifact.validation, conversion=(), compression=()),
            compression=Compression(weights=(), bytes={}),
            placement=replace(artifact.placement, ops=(), units={}),
            latency=replace(artifact.latency, devices=()),
            warnings=(),
        )
        for artifact in sample_report.artifacts
    ]
    terminal.show_report(replace(sample_report, artifacts=tuple(artifacts)), tmp_path)
    assert "87.3 MB" in capsys.readouterr().out


def test_names_are_neither_markup_nor_control_codes(sample_report, tmp_path, capsys):
    warning = f"[bold]layer[0][/bold] {ESCAPE}[2J\nnext [red]"
    artifact = replace(sample_report.artifacts[0], warnings=(warning,))
    terminal.show_report(replace(sample_report, artifacts=(artifact,)), tmp_path)
    out = capsys.readouterr().out
    assert "[bold]layer[0][/bold] ?[2J" in out and "next [red]" in out and ESCAPE not in out


def test_ascii_console(sample_report, sample_inspection, tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    terminal.show_report(sample_report, tmp_path)
    terminal.show_inspection(sample_inspection)
    sys.stdout.flush()
    assert b"4.12 ms (2.88-5.97)" in raw.getvalue()


def test_colours_only_on_a_terminal_without_no_color(sample_report, tmp_path, monkeypatch):
    def shown():
        monkeypatch.setattr(sys, "stdout", Tty())
        terminal.show_report(sample_report, tmp_path)
        return set(re.findall(r"\x1b\[([0-9;]*)m", sys.stdout.getvalue()))

    assert "1;32" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(part in codes.split(";") for codes in shown() for part in ("31", "32", "33"))


def run_stages(enabled=True):
    with terminal.progress(enabled) as show:
        with show("compress", total=3) as step:
            for index in range(3):
                step(f"layer[{index}]")
        with show("load") as step:
            step.note = "from the cache"


def test_progress_without_a_terminal_is_one_plain_line_per_stage(capsys):
    run_stages()
    out, err = capsys.readouterr()
    assert not out and ESCAPE not in err and "layer" not in err
    assert re.fullmatch(
        r"compress: done in 0\.\d\d s \(3 of 3\)\nload: done in 0\.\d\d s \(from the cache\)\n", err
    )


def test_progress_on_a_terminal_shows_layers_and_stays_off_standard_output(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Tty())
    run_stages()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue())
    assert "compress" in text and "3 of 3" in text and "from the cache" in text and "✓" in text
    assert not capsys.readouterr().out


def test_quiet_progress_is_silent(capsys):
    run_stages(enabled=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stream", [io.StringIO, Tty])
def test_a_failing_stage_says_so_and_passes_the_error_on(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with pytest.raises(KeyError), terminal.progress() as show, show("convert"):
        raise KeyError("x")
    assert "failed" in sys.stderr.getvalue()


def test_validation(sample_report, capsys):
    validation = replace(sample_report.artifacts[1].validation, compression=())
    terminal.show_validation(Comparison("net.pte", "net.pt", "fail", validation, ("Too far.\nTry more.",)))
    out = capsys.readouterr().out
    assert "net.pte against net.pt, reference runner" in out and "1x197x768" in out and "31.0 dB" in out
    assert "logits: 2 values are NaN or infinite where the reference is finite" in out
    assert "At least 40 dB are asked: fail" in out and "→ Try more." in out


def test_metadata_of_an_inspected_package(sample_inspection, capsys):
    metadata = {"author": f"Jane {ESCAPE}[2J", "license": "all rights " * 50}
    terminal.show_inspection(replace(sample_inspection, metadata=metadata))
    out = words(capsys.readouterr().out)
    assert "author Jane ?[2J" in out and "license all rights all" in out and "..." in out


def test_inspection(sample_inspection, capsys):
    terminal.show_inspection(sample_inspection)
    out = capsys.readouterr().out
    assert "bytes: weights 86.5 MB, graph 610 kB" in out and "Placement on iPhone 15 Pro (estimate)" in out
    assert (
        "cast to int32 has no Neural Engine form" in out
        and "61.5 ms (43.0–89.2)" in out
        and "vit.encoder.layer[" in out
    )
    assert "8.02–8.03 bits" in words(out)


def test_doctor(capsys):
    terminal.show_doctor(
        [("torch", "2.13.0", True, ""), ("coremltools", "8.0", False, "pip install 'coremltools==9.0'")]
    )
    out = capsys.readouterr().out
    assert "1 of 2 need attention" in out and "pip install 'coremltools==9.0'" in out
    terminal.show_doctor([("torch", "2.13.0", True, "")])
    assert "Everything cidermill needs is here." in capsys.readouterr().out


def test_user_errors_go_to_standard_error(capsys):
    show_error(UserError("recipe 'int9[x]': unknown\n  - second line", "Recipes are int8, int4."))
    out, err = capsys.readouterr()
    assert not out and err == "error: recipe 'int9[x]': unknown\n  - second line\n→ Recipes are int8, int4.\n"
