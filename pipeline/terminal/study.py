"""A study and its best trials as a person sees them in the terminal: results (results.py) enter, standard
output leaves."""

from collections.abc import Sequence
from typing import Any

from ..report import summaries
from ..study.page import PAGE
from ..study.results import (
    Row,
    Study,
    first_latency_ms,
    first_line,
    is_exact,
    latency_text,
    measured_by_metric,
)
from .console import console
from .text import arrow, clean, line, table, verdict_text

WITH_SHARES = 92  # columns from which the Neural Engine's share and the cosine fit as well


def study_result(study: Study) -> dict:
    """What `--json` prints: the header, and every trial with whether it is on the front. verdict: "pass"
    where any trial passed."""
    on_front = study.front
    trials = [{**row, "front": row["trial"] in on_front} for row in study.rows]
    passed = any(row["state"] == "done" and row.get("verdict") == "pass" for row in trials)
    return {
        **study.header,
        "study": str(study.folder),
        "trials": trials,
        "verdict": "pass" if passed else "fail",
    }


def show_study(result: dict) -> None:
    """A table for each model and target, sorted by size, the front marked; then the trials that failed, with
    their reasons."""
    out = console()
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in result["trials"]:
        groups.setdefault((row["model"], row["target"]), []).append(row)
    for (model, target), rows in groups.items():
        done = sorted(
            (row for row in rows if row["state"] == "done"), key=lambda row: (row["size_bytes"], row["trial"])
        )
        out.print()
        out.print(
            line(
                (clean(model), "bold"),
                (f" for {clean(target)}", ""),
                ("" if done else ": no trial was finished", ""),
            ),
            soft_wrap=True,
        )
        if done:
            out.print(_table(done, out))
    _show_reasons(
        [
            row
            for row in result["trials"]
            if row["state"] == "failed" or (row.get("verdict") == "fail" and row.get("reason"))
        ],
        out,
    )
    out.print(line((_legend(result["trials"], out), "dim")))
    if result.get("infeasible"):
        out.print(line((clean(result["infeasible"], keep_lines=True), "red")), soft_wrap=True)
    out.print(
        line(("Study in ", ""), (clean(result["study"]), "bold"), (f": {PAGE}, study.csv, study.jsonl", "")),
        soft_wrap=True,
    )


def _star(out: Any) -> str:
    return "★" if arrow(out) == "→" else "*"


def _table(rows: Sequence[Row], out: Any) -> Any:
    by_metric, wide = measured_by_metric(rows), out.width >= WITH_SHARES
    devices = [row["latency"][0]["device"] for row in rows if row.get("latency")]
    headers = [
        "",
        "#",
        "recipe",
        "size",
        *(["metric"] if by_metric else []),
        "PSNR",
        *(["cosine"] if wide else []),
        *(["latency"] if devices else []),
        *(["ANE"] if wide else []),
        "verdict",
    ]
    return table(out, headers, [_cells(row, out, by_metric, wide, bool(devices)) for row in rows])


def _cells(row: Row, out: Any, by_metric: bool, wide: bool, latency: bool) -> list:
    psnr = "exact" if is_exact(row) else summaries.db_text(row.get("psnr_db"))
    first = first_latency_ms(row)
    return [
        _star(out) if row["front"] else "",
        str(row["trial"]),
        line((clean(summaries.recipe_text(row["recipe"])), "bold" if row["front"] else "")),
        summaries.size_text(row["size_bytes"]),
        *([summaries.number_text(row.get("metric"))] if by_metric else []),
        psnr,
        *([summaries.number_text(row.get("cosine"))] if wide else []),
        *([summaries.ms_text(None if first == float("inf") else first)] if latency else []),
        *([summaries.percent_text(row.get("ane_share"))] if wide else []),
        verdict_text(row.get("verdict") or summaries.NONE),
    ]


def _show_reasons(rows: Sequence[Row], out: Any) -> None:
    if rows:
        out.print(line((f"{len(rows)} trial{'s' if len(rows) > 1 else ''} failed:", "red")))
    for row in rows:
        name = (
            f"  {row['trial']} {clean(summaries.recipe_text(row['recipe']))} ({clean(row['model'])},"
            f" {clean(row['target'])}): "
        )
        out.print(
            line((name, "bold"), (clean(first_line(row.get("reason"))) or "no reason recorded", "")),
            soft_wrap=True,
        )


def _legend(rows: Sequence[Row], out: Any) -> str:
    device = next((row["latency"][0]["device"] for row in rows if row.get("latency")), "")
    error = "metric" if measured_by_metric(rows) else "PSNR"
    latency = f" and latency ({clean(device)}, two digits)" if device else ""
    return (
        f"{_star(out)}: on the front of size, {error}{latency}. PSNR: the saved file against the source,"
        " worst output."
    )


def show_best(result: dict) -> None:
    """The winner's figures and the command that makes it; where there is none, which constraint cannot be met
    and by how much."""
    out = console()
    for found in result["models"]:
        out.print()
        out.print(
            line((clean(found["model"]), "bold"), (f" within {clean(', '.join(result['constraints']))}", "")),
            soft_wrap=True,
        )
        if "trial" in found:
            _show_winner(found["trial"], out)
            out.print(clean(found["command"]), soft_wrap=True)
        else:
            out.print(line((clean(found["infeasible"], keep_lines=True), "red")), soft_wrap=True)


def _show_winner(row: Row, out: Any) -> None:
    figures = [
        ("recipe", clean(row["recipe"])),
        ("target", clean(row["target"])),
        (
            "size",
            f"{summaries.size_text(row['size_bytes'])},"
            f" {summaries.bits_text(row.get('bits_per_weight'))} per weight",
        ),
        *([("metric", summaries.number_text(row["metric"]))] if row.get("metric") is not None else []),
        (
            "PSNR",
            (
                f"{'exact' if is_exact(row) else summaries.db_text(row.get('psnr_db'))}, cosine"
                f" {summaries.number_text(row.get('cosine'))}"
            ),
        ),
        *(
            (clean(one["device"]), f"{latency_text(one)}, {clean(one.get('source', 'estimate'))}")
            for one in row.get("latency") or []
        ),
        *(
            [("ANE", f"{summaries.percent_text(row['ane_share'])} of the operations")]
            if row.get("ane_share") is not None
            else []
        ),
    ]
    width = max(len(name) for name, _ in figures) + 2
    for name, text in figures:
        out.print(line((f"  {name:<{width}}", "dim"), (text, "")), soft_wrap=True)
