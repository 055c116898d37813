"""An inspected artifact (sections of report.json) in; the texts and tables that `cidermill inspect` shows, in
order, out."""

from collections.abc import Iterator
from typing import Any

from ..report import summaries as fig
from .measured import measured_parts
from .text import arrow, clean, line, table

UNIT_STYLES = {"ane": "green", "gpu": "magenta", "cpu": "yellow"}
MOST_REASONS = 8


def inspection_parts(result: dict, console: Any) -> Iterator[Any]:
    """Everything printable about one artifact; sections that are absent are left out."""
    yield line(
        (clean(result["path"]), "bold"),
        (f"  {clean(result['target'])}, {fig.size_text(result.get('size_bytes'))}", ""),
    )
    compression = result.get("compression") or {}
    kinds = [
        f"{clean(kind)} {fig.size_text(size)}"
        for kind, size in sorted((compression.get("bytes") or {}).items(), key=lambda item: -item[1])
        if size
    ]
    if kinds:
        yield line(("bytes: ", "dim"), (", ".join(kinds), ""))
    yield from _placement(result.get("placement"), console)
    yield from _latency(result.get("latency"), console)
    yield from measured_parts(result, console)
    if compression.get("weights"):
        rows = [
            [clean(group.realised), str(group.count), group.bits]
            for group in fig.weight_groups(compression["weights"])
        ]
        yield table(console, ["weights stored as", "weights", "per weight"], rows)


def _placement(placement: dict | None, console: Any) -> Iterator[Any]:
    shares = fig.unit_shares(placement)
    if not shares:
        return
    yield line(
        (
            f"\nPlacement on {clean(placement.get('device', ''))} ({clean(placement.get('source', ''))})",
            "bold",
        )
    )
    yield _bar(shares, console)
    rows = [
        [
            fig.UNIT_NAMES[s.unit],
            fig.count_text(s.ops),
            *map(fig.percent_text, (s.ops_share, s.time_share, s.bytes_share)),
        ]
        for s in shares
    ]
    yield table(console, ["unit", "operations", "share", "time", "bytes"], rows)
    if crossings := fig.crossings_text(placement):
        yield crossings
    reasons = fig.off_ane_reasons(placement)
    if reasons:
        rows = [
            [fig.UNIT_NAMES[row.unit], fig.count_text(row.ops), fig.ms_text(row.ms), _reason(row, console)]
            for row in reasons[:MOST_REASONS]
        ]
        yield table(console, ["unit", "operations", "time", "why not on the Neural Engine"], rows)
    if len(reasons) > MOST_REASONS:
        yield f"and {len(reasons) - MOST_REASONS} more reasons (--json lists every operation)"
    slow = fig.slowest(placement, 8)
    if slow:
        rows = [
            [
                clean(op["name"]),
                clean(op["type"]),
                clean(op.get("module") or ""),
                fig.UNIT_NAMES[op["unit"]],
                fig.ms_text(op["cost_ms"]),
            ]
            for op in slow
        ]
        yield table(console, ["slowest operation", "type", "module", "unit", "time"], rows)


def _reason(row: fig.OffEngine, console: Any) -> str:
    return clean(row.reason) + (f"\n{arrow(console)} {clean(row.advice)}" if row.advice else "")


def worst(shapes: list[dict]) -> dict | None:
    """The slowest of the shapes that could be estimated."""
    return max((row for row in shapes if row.get("ms") is not None), key=lambda row: row["ms"], default=None)


def _shape_row(row: dict, slowest: bool) -> list[str]:
    unit = fig.UNIT_NAMES.get(row.get("unit") or "", fig.NONE)
    time = (
        f"not estimated: {clean(row['problem'])}"
        if row.get("problem")
        else fig.band_text(row) + (", the slowest" if slowest else "")
    )
    return [clean(row["inputs"]), clean(row["kind"]), unit, time]


def _bar(shares: list, console: Any) -> Any:
    """Operations by unit as one bar; letters where there is no colour to tell the units apart."""
    width = min(60, console.width - 2)
    counts = [max(1, round(width * share.ops_share)) for share in shares]
    if console.is_terminal and not console.no_color and console.encoding.lower().startswith("utf"):
        return line(*(("█" * count, UNIT_STYLES[share.unit]) for share, count in zip(shares, counts)))
    return line(*((fig.UNIT_NAMES[share.unit][0] * count, "") for share, count in zip(shares, counts)))


def _latency(latency: dict | None, console: Any) -> Iterator[Any]:
    devices = (latency or {}).get("devices") or []
    if not devices:
        return
    yield line((f"\nLatency ({clean(latency.get('source', ''))}, with its band)", "bold"))
    rows = [
        [
            clean(row["device"]),
            clean(row.get("chip", "")),
            clean(row.get("compute_units", "")),
            fig.band_text(row),
        ]
        for row in devices
    ]
    yield table(console, ["device", "chip", "compute units", "time"], rows)
    shapes = latency.get("shapes") or []
    if shapes:
        yield line((f"\nBy shape, on {clean(devices[0]['device'])}", "bold"))
        yield table(
            console,
            ["inputs", "shape", "mostly on", "time"],
            [_shape_row(row, row is worst(shapes)) for row in shapes],
        )
