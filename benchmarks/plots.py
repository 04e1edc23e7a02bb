"""The plots of the page of results. Each takes plain figures and writes one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

OURS, THEIRS, LINE = "#1f6f8b", "#b8b8b8", "#d1495b"
NAMES = {
    "ours": "reelscribe", "data_juicer": "Data-Juicer 1.6.1", "loop": "plain loop", "batch": "plain batches of 4",
    "reelscribe": "reelscribe", "opencv": "OpenCV", "decord": "decord", "torchcodec": "torchcodec",
    "pyav": "PyAV, plain loop", "opencv_seek": "OpenCV, seeking",
    "opencv_as_it_comes": "OpenCV, as it comes", "decord_as_it_comes": "decord, as it comes",
}  # fmt: skip


def _axes(columns: int, *, height: float = 3.2) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(1, columns, figsize=(4.2 * columns, height), squeeze=False, layout="constrained")
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def bars(path: Path, panels: Mapping[str, Mapping[str, float]], *, unit: str) -> None:
    """Horizontal bars, a panel a case; ours stands out, and each bar has its value and the ratio to ours.

    Args:
        path: the picture.
        panels: title of a panel to name and value of its bars, ours first; smaller is better.
        unit: of the values.
    """
    figure, axes = _axes(len(panels), height=0.5 + 0.42 * max(map(len, panels.values())) + 0.6)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        own = next(iter(values.values()))
        names = [NAMES.get(name, name) for name in values]
        axis.barh(names, list(values.values()), color=[OURS] + [THEIRS] * (len(values) - 1))
        axis.bar_label(
            axis.containers[0], [f"{value:.3g}  ({value / own:.2f}x)" for value in values.values()], padding=3
        )
        axis.invert_yaxis()
        axis.set_title(title, loc="left")
        axis.set_xlabel(unit)
        axis.set_xlim(0, 1.45 * max(values.values()))
    _save(figure, path)


def ceilings(path: Path, panels: Mapping[str, Mapping[str, float]]) -> None:
    """What each stage does alone, what the pipeline does, and a line at the lowest of the first.

    Args:
        path: the picture.
        panels: title of a panel to stage and videos per second; `pipeline` comes last.
    """
    figure, axes = _axes(len(panels))
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        lowest = min(value for name, value in values.items() if name != "pipeline")
        axis.bar(list(values), list(values.values()), color=[OURS if name == "pipeline" else THEIRS for name in values])
        axis.axhline(lowest, color=LINE, linewidth=1)
        axis.set_ylim(0, min(1.15 * max(values.values()), 3 * lowest))
        for place, value in enumerate(values.values()):
            axis.text(place, min(value, 2.7 * lowest), f"{value:.2f}", ha="center", va="bottom")
        axis.set_title("\n".join(wrap(title, 30)), loc="left")
    axes[0].set_ylabel("videos per second")
    _save(figure, path)


def growth(path: Path, rows: Sequence[int], milliseconds: Sequence[float], mebibytes: Sequence[float]) -> None:
    """Cost of a row and peak memory over the number of rows.

    Args:
        path: the picture.
        rows: sizes of the data set, `[N]`.
        milliseconds: time for a row, `[N]`.
        mebibytes: peak of all processes, `[N]`.
    """
    figure, axes = _axes(2)
    for axis, values, title in zip(
        axes, (milliseconds, mebibytes), ("milliseconds a row", "peak memory, MiB"), strict=True
    ):
        axis.plot(rows, values, marker="o", color=OURS)
        axis.set_xscale("log")
        axis.set_xticks(list(rows), [f"{count:,}" for count in rows])
        axis.set_ylim(0, 1.25 * max(values))
        for count, value in zip(rows, values, strict=True):
            axis.annotate(f"{value:.3g}", (count, value), textcoords="offset points", xytext=(0, 6), ha="center")
        axis.set_title(title, loc="left")
        axis.set_xlabel("rows")
    _save(figure, path)


def soak(path: Path, samples: Sequence[Mapping[str, float]]) -> None:
    """What a long run holds, over time: memory on the left, counts on the right.

    Args:
        path: the picture.
        samples: what `benchmarks.soak.sample` gives, with the seconds since the start.
    """
    figure, (memory, counts) = _axes(2)
    minutes = [one["seconds"] / 60 for one in samples]
    panels = {
        memory: {"resident_mib": "the run", "workers_mib": "processes that read", "shared_mib": "shared frames"},
        counts: {"descriptors": "open files", "threads": "threads", "processes": "processes"},
    }
    for axis, lines in panels.items():
        for (name, label), colour in zip(lines.items(), (OURS, LINE, "#7a7a7a"), strict=True):
            axis.plot(minutes, [one[name] for one in samples], label=label, color=colour)
        axis.set_xlabel("minutes")
        axis.set_ylim(bottom=0)
        axis.legend(loc="center right", frameon=False)
    memory.set_title("MiB", loc="left")
    counts.set_title("count", loc="left")
    _save(figure, path)
