"""The page of results: tables, plots and the flat file, from what the parts left in `runs/benchmarks`.

`python -m benchmarks.page` writes `docs/benchmarks.md`, `docs/benchmarks/*.png` and `benchmarks/results.json`. A part
that was not run is said to be missing.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.flat import machine, merge
from benchmarks.plots import NAMES

WORK = Path("runs/benchmarks")
PAGE = Path("docs/benchmarks.md")
PLOTS = Path("docs/benchmarks")
TEMPLATE = Path(__file__).parent / "page_template.md"
MISSING = "This part has not been run."
DECODE_CASES = {
    "two_fps": "2 frames a second of rendered clips",
    "real": "2 frames a second of five real clips",
    "sparse": "8 frames of a ten-minute file",
}
CAPTION_CASES = {
    "short.m1": "4-second clips, M = 1",
    "short.m4": "4-second clips, M = 4",
    "real.m1": "clips from cameras, M = 1",
    "real.m4": "clips from cameras, M = 4",
    "web.m1": "clips of the web, M = 1",
    "web.m4": "clips of the web, M = 4",
}
CEILING_CASES = {
    "transformers": "transformers on the same cores, clips of up to 1080p",
    "transformers_small": "the same, clips of up to 480p",
    "slow_device": "a device at half the speed of reading",
    "fast_device": "a device at 1.5 times that speed",
}


def load(name: str) -> dict[str, Any]:
    """What a part left, or nothing."""
    path = WORK / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {"figures": {}, "found": {}}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(name: str, text: str) -> str:
    """A plot beside the page."""
    return f"![{text}]({PLOTS.name}/{name}.png)"


def median(runs: Iterable[dict[str, float]], key: str) -> float:
    """The median of one figure over runs."""
    return statistics.median(run[key] for run in runs)


def captioning(part: dict[str, Any]) -> str:
    """Whole runs against peers."""
    found, figures = part["found"], part["figures"]
    if not found:
        return MISSING
    rows, panels = [], {}
    for case, title in CAPTION_CASES.items():
        names = [name for name in ("ours", "data_juicer", "loop", "batch") if f"{name}.{case}" in found]
        panels[title] = {name: median(found[f"{name}.{case}"], "seconds") for name in names}
        for name in names:
            runs = found[f"{name}.{case}"]
            ratio = f"{figures[f'{name}.{case}']:.2f}" if name != "ours" else "1"
            rows.append([title, NAMES[name], f"{median(runs, 'seconds'):.2f}", f"{median(runs, 'cpu_seconds'):.1f}",
                         ratio, f"{median(runs, 'generated_tokens'):.0f}", str(len(runs))])  # fmt: skip
    for kind in ("short", "real", "web"):
        both = {title: panels[title] for case, title in CAPTION_CASES.items() if case.startswith(kind)}
        plots.bars(
            PLOTS / f"captioning_{kind}.png", {k: v for k, v in both.items() if v}, unit="seconds, less is better"
        )
    head = ("clips", "who", "wall s", "CPU s", "wall time over reelscribe's", "tokens written", "runs")
    shown = [picture(f"captioning_{kind}", f"seconds for {kind} clips") for kind in ("short", "real", "web")]
    return "\n\n".join([table(head, rows), *shown])


def decoding(part: dict[str, Any]) -> str:
    """Reading alone."""
    if not part["found"]:
        return MISSING
    rows, panels = [], {}
    for case, title in DECODE_CASES.items():
        if case not in part["found"]:
            continue
        rounds, ways = part["found"][case]["rounds"], part["found"][case]["ways"]
        values = {name: median(runs, "cpu_seconds") for name, runs in rounds.items() if runs}
        panels[title] = values
        own = values["reelscribe"]
        rows += [[title, NAMES.get(name, name), ways.get(name) or "", f"{value:.2f}", f"{own / value:.2f}"]
                 for name, value in values.items()]  # fmt: skip
    plots.bars(PLOTS / "decode.png", panels, unit="CPU seconds, less is better")
    head = ("case", "reader", "its cheapest way", "CPU s", "reelscribe over it")
    return "\n\n".join([table(head, rows), picture("decode", "CPU seconds of reading")])


def bare(part: dict[str, Any]) -> str:
    """All that reading does over decoding alone."""
    cases = {"bare": "five real clips", "bare_short": "4-second clips of 320x240"}
    rows = []
    for case, title in cases.items():
        if case not in part["found"]:
            continue
        own, alone = part["found"][case]["rounds"].values()
        ratios = [one["cpu_seconds"] / other["cpu_seconds"] for one, other in zip(own, alone, strict=True)]
        rows.append([title, f"{median(alone, 'cpu_seconds'):.2f}", f"{median(own, 'cpu_seconds'):.2f}",
                     f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"])  # fmt: skip
    head = ("clips at 2 frames a second", "decoding alone, CPU s", "reelscribe, CPU s", "ratio, median of the rounds")
    return table(head, rows) if rows else MISSING


def tolerance(part: dict[str, Any]) -> str:
    """What a tolerance saves."""
    names = {"decode.tolerance_vs_exact": "rendered clips", "decode.real.tolerance_vs_exact": "five real clips"}
    rows = [[title, f"{part['figures'][key]:.2f}"] for key, title in names.items() if key in part["figures"]]
    return (
        table(("clips at 2 frames a second", "CPU time with a tolerance of 0.25 s over exact"), rows)
        if rows
        else MISSING
    )


def ceilings(part: dict[str, Any]) -> str:
    """The pipeline against its stages."""
    if not part["found"]:
        return MISSING
    rows, panels = [], {}
    for case, title in CEILING_CASES.items():
        runs = part["found"].get(case)
        if not runs:
            continue
        run = {name: median(runs, name) for name in ("decode", "prepare", "model", "pipeline") if name in runs[0]}
        panels[title] = run
        rows.append([title, f"{run['decode']:.2f}", f"{run['model']:.2f}", f"{run['pipeline']:.2f}", runs[-1]["lowest"],
                     f"{part['figures'][f'ceiling.{case}.ratio']:.2f}",
                     f"{median(runs, 'shared_ratio'):.2f}" if "shared" in runs[0] else ""])  # fmt: skip
    plots.ceilings(PLOTS / "ceiling.png", panels)
    head = (
        "model",
        "reading alone, videos/s",
        "model alone",
        "pipeline",
        "lowest",
        "pipeline over lowest",
        "over what shared cores allow",
    )
    return "\n\n".join([table(head, rows), picture("ceiling", "ceilings and the pipeline")])


def growth(part: dict[str, Any]) -> str:
    """Cost and memory over size."""
    found = part["found"]
    if not found:
        return MISSING
    sizes = sorted((int(key.partition(".")[2]), key) for key in found if key.startswith("scripted."))
    rows, series = [], []
    for count, key in [*sizes, *((int(k.partition(".")[2]), k) for k in found if k.startswith("model."))]:
        runs = found[key]
        cost = 1000 * median(runs, "seconds") / count
        peak = statistics.median(run["peak_mib"] + run["workers_peak_mib"] for run in runs)
        captioner = "scripted" if key.startswith("scripted") else "bundled model"
        rows.append([captioner, f"{count:,}", f"{cost:.2f}", f"{peak:.0f}"])
        if captioner == "scripted":
            series.append((count, cost, peak))
    plots.growth(PLOTS / "growth.png", *map(list, zip(*series, strict=True)))
    head = ("captioner", "rows", "ms a row", "peak of all processes, MiB")
    return "\n\n".join([table(head, rows), picture("growth", "cost of a row and memory over rows")])


def gpu(part: dict[str, Any]) -> str:
    """The GPU's figures, if there are any."""
    if not part.get("gpu.name"):
        return (
            "**Not run**: no GPU was at hand, so that bf16, `torch.compile` and static shapes are not measured either. "
            "`python -m benchmarks.gpu` runs on a machine with one."
        )
    rows = [[name, str(value)] for name, value in part.items() if not isinstance(value, dict)]
    return table(("figure", "value"), rows)


def main() -> None:
    """Write everything."""
    parts = {name: load(name) for name in ("captioning", "decode", "ceiling", "growth")}
    flat = {key: value for part in parts.values() for key, value in part["figures"].items()}
    if "candidates.short.m4_over_m1" in flat:
        flat["candidates.m4_over_m1"] = flat["candidates.short.m4_over_m1"]
    merge(flat)
    text = TEMPLATE.read_text("utf-8").format(
        date=date.today().isoformat(),
        machine=machine(),
        python=platform.python_version(),
        transformers=version("transformers"),
        torch=version("torch"),
        av=version("av"),
        captioning=captioning(parts["captioning"]),
        decoding=decoding(parts["decode"]),
        bare=bare(parts["decode"]),
        tolerance=tolerance(parts["decode"]),
        ceilings=ceilings(parts["ceiling"]),
        ceiling_rounds=len(parts["ceiling"]["found"].get("transformers", ())),
        growth=growth(parts["growth"]),
        gpu=gpu(load("gpu")),
        m4=flat.get("candidates.short.m4_over_m1", float("nan")),
        m4_real=flat.get("candidates.real.m4_over_m1", float("nan")),
        m4_web=flat.get("candidates.web.m4_over_m1", float("nan")),
        memory=flat.get("memory.growth", float("nan")),
        growth_rounds=len(parts["growth"]["found"].get("scripted.100", ())),
        further=[flat.get(f"rows.to_{count}.milliseconds_a_further_row", float("nan")) for count in (1000, 10000)],
    )
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
