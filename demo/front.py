"""The picture of a study's front for the README: size against error, the front marked and named. Equal
studies give equal bytes.

python demo/front.py STUDY_DIR demo/front.png
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from cidermill.pipeline.study.records import StudyRow
from cidermill.pipeline.study.results import Study, is_exact, load_study, measured_by_metric

COLOURS = ("#3f6fb5", "#c2703d", "#5c8a6b", "#a86a8d")
INK, SOFT, FAILED = "#1d1f21", "#8a8f98", "#b3261e"
# where a name may stand, in points from its mark: first where the step line does not run
NEAR = [
    (-6, 4, "right"),
    (0, 8, "center"),
    (7, -11, "left"),
    (0, -14, "center"),
    (8, 4, "left"),
    (-8, -11, "right"),
    (9, -3, "left"),
]
SPOTS = NEAR + [(x, y + lift, side) for lift in (10, -10, 20, -20) for x, y, side in NEAR[:4]]


def picture(study: Study, path: Path) -> None:
    """Draw every trial of the study that has figures; raises SystemExit where none has."""
    rows = [row for row in study.rows if row.figure("size_bytes") is not None]
    points, exact_at = positions(rows)
    if not points:
        raise SystemExit(f"{study.folder} has no trial to draw.")
    plt.rcParams.update(
        {"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(figsize=(7.4, 4.2), dpi=150)
    series = list(dict.fromkeys((row.model, row.target) for row in rows))
    for index, name in enumerate(series):
        members = {row.trial: row for row in rows if (row.model, row.target) == name and row.trial in points}
        draw(axes, members, points, study, COLOURS[index % len(COLOURS)], " for ".join(name))
    label_axes(axes, study, points, exact_at)
    name_trials(figure, axes, rows, points, study.front)
    if len(series) > 1:
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Software": None}, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def positions(rows: list[StudyRow]) -> tuple[dict[int, tuple[float, float]], float | None]:
    """-> (trial -> size in its unit's bytes and the figure to draw, the height at which exact answers are
    drawn: above all others)."""
    by_metric = measured_by_metric(rows)
    figures = {
        row.trial: row.figure("metric") if by_metric else None if is_exact(row) else row.figure("psnr_db")
        for row in rows
    }
    finite = [figure for figure in figures.values() if figure is not None] or [0.0]
    exact = {row.trial for row in rows if not by_metric and is_exact(row)}
    height = max(finite) + 0.12 * max(max(finite) - min(finite), 10)
    heights = {trial: height if trial in exact else figure for trial, figure in figures.items()}
    points = {
        row.trial: (row.size_bytes, heights[row.trial]) for row in rows if heights[row.trial] is not None
    }
    return points, height if exact else None


def draw(axes, rows: dict[int, StudyRow], points: dict, study: Study, colour: str, name: str) -> None:
    """Trials as dots, the front as stars joined by steps, what failed hollow."""
    minimized = study.goal == "minimize" and measured_by_metric(rows.values())
    front = sorted(
        (points[trial] for trial in rows if trial in study.front),
        key=lambda point: (point[0], point[1] if minimized else -point[1]),
    )
    stairs = [
        point
        for index, point in enumerate(front)
        if all((point[1] < y) if minimized else (point[1] > y) for _, y in front[:index])
    ]
    if stairs:
        axes.step(*zip(*stairs), where="post", color=colour, alpha=0.6, linewidth=1, zorder=1)
    for trial, row in rows.items():
        if trial in study.front:
            axes.plot(*points[trial], marker="*", markersize=11, color=colour, zorder=3)
        elif row.passed:
            axes.plot(*points[trial], marker="o", markersize=5, color=colour, alpha=0.5, zorder=2)
        else:
            axes.plot(
                *points[trial],
                marker="o",
                markersize=5,
                markerfacecolor="none",
                markeredgecolor=FAILED,
                zorder=2,
            )
    axes.plot([], [], marker="*", linestyle="-", color=colour, label=name)


def label_axes(axes, study: Study, points: dict, exact_at: float | None) -> None:
    """A logarithmic axis of sizes in one unit; a dotted line for exact answers."""
    sizes = [size for size, _ in points.values()]
    unit, scale = next(
        (unit, scale)
        for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))
        if max(sizes) >= scale
    )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    narrow = max(sizes) < 2 * min(sizes)
    axes.xaxis.set_major_locator(MaxNLocator(6) if narrow else LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / scale:g}"))
    axes.set_xlabel(f"size ({unit})")
    axes.set_ylabel(
        str(study.header.eval) if measured_by_metric(study.rows) else "PSNR against the source (dB)"
    )
    axes.grid(alpha=0.25)
    if exact_at is not None:
        axes.axhline(exact_at, color=SOFT, linewidth=0.8, linestyle=":")
        axes.text(
            1,
            exact_at,
            "exact",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=7,
            color=SOFT,
        )
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in axes.get_yticks() if tick < exact_at]))


def name_trials(figure, axes, rows: list[StudyRow], points: dict, front: set[int]) -> None:
    """The recipes beside their marks, the front's first, each at the first spot that is free; one that finds
    none goes without."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    centres = [axes.transData.transform(point) for point in points.values()]
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in centres]
    room = Bbox.from_extents(axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1 + 12)
    for row in sorted(rows, key=lambda row: (row.trial not in front, row.size_bytes, row.trial)):
        if row.trial not in points:
            continue
        style = (
            {"fontsize": 8, "color": INK, "zorder": 4}
            if row.trial in front
            else {"fontsize": 6.5, "color": SOFT}
        )
        for x, y, side in SPOTS if row.trial in front else NEAR:
            text = axes.annotate(
                row.recipe, points[row.trial], (x, y), textcoords="offset points", ha=side, **style
            )
            box = text.get_window_extent(renderer)
            inside = room.contains(*box.p0) and room.contains(*box.p1)
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    picture(load_study(Path(sys.argv[1])), Path(sys.argv[2]))
