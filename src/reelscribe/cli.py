"""The commands. They parse options, pass them on, and print the result; heavy modules are loaded when one runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .console import words_come_second
from .errors import ReelscribeError
from .options import PanelOption, SettingsCommand, parameters_of, taken_from
from .printable import one_line, printable

if TYPE_CHECKING:
    from .runners.ray.settings import RaySettings
    from .runners.report.summary import RunSummary

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

PATH = click.Path(path_type=Path)


class Place(click.ParamType[Any]):
    """A path, or an address such as s3://bucket/key."""

    name = "path"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        """Keep an address as text; a `Path` would drop one of its slashes."""
        return value if "://" in str(value) else Path(value)


PLACE = Place()
NOT_OF_THE_OPERATOR = ("Output", "Run", "Ray cluster")
"""Panels whose options configure the run rather than the operator: its input, its output, and where it runs."""

profile_option = partial(
    click.option,
    "--profile",
    cls=PanelOption,
    panel="Run",
    type=PATH,
    metavar="FILE",
    help="Write how long each stage was busy to this JSON file.",
)
count_option = partial(click.option, type=click.IntRange(min=1), metavar="N", show_default=True)


class Commands(click.Group):
    """Command group that prints user errors as one line instead of a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; a failed print never changes the exit code."""
        with words_come_second():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ReelscribeError as exc:
            say(f"error: {one_line(str(exc))}{_notes(exc)}")
            ctx.exit(exc.exit_code)
        except OSError as exc:
            where = f": {exc.filename}" if exc.filename else ""
            say(f"error: {exc.strerror or exc}{where}{_notes(exc)}")
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt as exc:
            say(f"stopped{_notes(exc) or '; nothing was written'}")
            ctx.exit(EXIT_INTERRUPTED)
        except click.ClickException as exc:
            exc.message = printable(exc.message)  # type: ignore[misc]
            raise


def say(line: str) -> None:
    """Print a line for the user on stderr."""
    click.echo(printable(line), err=True)


def _notes(exc: BaseException) -> str:
    """The notes of an exception, such as where finished rows are."""
    return "".join(f"; {note}" for note in getattr(exc, "__notes__", ()))


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


@click.group(cls=Commands, context_settings={**HELP_NAMES, "max_content_width": 100})
@click.version_option(__version__, prog_name="reelscribe")
def main() -> None:
    """Caption video data sets with vision-language models."""


@main.command(cls=SettingsCommand, takes=lambda _: True, context_settings=HELP_NAMES)
@click.argument("input", type=PLACE)
@click.option(
    "-o",
    "--output",
    cls=PanelOption,
    panel="Output",
    type=PLACE,
    required=True,
    help="A .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .csv, .tsv or .tar "
    "file, a .lance folder, or a folder with --format; also at an address, such as s3://bucket/out.parquet.",
)
@profile_option()
@click.pass_context
def caption(
    ctx: click.Context,
    /,
    input: Path,  # noqa: A002
    output: Path,
    profile: Path | None,
    **given: Any,
) -> None:
    """Caption the videos of INPUT: a data file, a folder of videos, tar shards or another format, or a single video.

    Rows have a text and a list of `videos` (generated rows follow each original), or one `video` (its captions go to a
    field `captions`). Relative video paths are relative to the data file. Failures are written to
    OUTPUT.failures.jsonl. Rerun the same command to resume an interrupted run. Exit codes: 0, every row has its
    caption; 3, some rows failed; 4, more than --max-failures; 1 and 2, a setup or usage error.
    """
    settings, cluster = of_run(given), cluster_of(given)
    run(ctx, input, output, parameters_of(given), settings, profile=profile, cluster=cluster)


@main.command(
    cls=SettingsCommand, takes=lambda one: one.option.panel in ("Run", "Ray cluster"), context_settings=HELP_NAMES
)
@click.option("--config", cls=PanelOption, panel="Run", type=PATH, required=True, help="The recipe, a YAML file.")
@profile_option()
@click.pass_context
def process(ctx: click.Context, /, config: Path, profile: Path | None, **given: Any) -> None:
    """Run a Data-Juicer recipe whose `process` list contains video_captioning_from_vlm_mapper."""
    from .recipe import read_recipe

    settings, cluster = of_run(given), cluster_of(given)
    recipe = read_recipe(config)
    for note in recipe.notes:
        say(f"note: {note}")
    run(ctx, recipe.dataset_path, recipe.export_path, recipe.parameters, settings, profile=profile, cluster=cluster)


@main.command(cls=SettingsCommand, takes=lambda one: one.fits_retry, context_settings=HELP_NAMES)
@click.argument("output", type=PLACE)
@click.option(
    "--kind",
    "kinds",
    cls=PanelOption,
    panel="Run",
    multiple=True,
    metavar="KIND",
    help="Retry only failures of this kind, such as timeout; may be repeated.  [default: all]",
)
@profile_option()
@click.pass_context
def retry(ctx: click.Context, /, output: Path, kinds: tuple[str, ...], profile: Path | None, **given: Any) -> None:
    """Retry the failed videos of a run, and put the new captions in their place in OUTPUT.

    Uses the run's own settings; options given here replace those that affect only what failed.
    """
    from .runners.run.retry import retry_file

    settings, caption_file = of_run(given), file_runner(cluster_of(given))
    settings |= {"kinds": kinds, "changes": taken_from(given, list(given)), "caption": caption_file}
    show(ctx, lambda progress: retry_file(output, progress=progress, **settings), profile=profile)


@main.command(context_settings=HELP_NAMES)
@click.argument("places", type=PATH, nargs=-1)
@click.option("--clean", is_flag=True, help="Remove the run folders of finished runs, after asking.")
@click.option("--unfinished", is_flag=True, help="With --clean: of unfinished runs too; their work is lost.")
@click.option("--yes", is_flag=True, help="With --clean: do not ask.")
def runs(places: tuple[Path, ...], *, clean: bool, unfinished: bool, yes: bool) -> None:
    """List your runs: state, size, age, output, and the folder with each run's journal.

    PLACES, folders or outputs, narrow the list and include runs started there by other users. A run in progress is
    never removed, nor is any output; without its journal a run cannot be resumed, retried or updated.
    """
    from .runners.run import known_runs as known

    found = known.known_runs(places)
    if not clean:
        for run in found:
            click.echo(printable(run.line))
        return
    states = known.CLEANED | ({known.UNFINISHED, known.DAMAGED} if unfinished else set())
    chosen = [run for run in found if run.state in states]
    for run in chosen:
        click.echo(printable(run.line))
    if not chosen:
        click.echo("no runs to remove")
        return
    if not yes:
        click.confirm(f"remove the folders of {len(chosen):,} runs (their outputs stay)?", abort=True)
    for run, reason in known.clean(chosen):
        if reason is not None:
            click.echo(printable(f"kept {run.folder}: {reason}"), err=True)


@main.command(context_settings=HELP_NAMES)
@click.argument("model", required=False)
def models(model: str | None) -> None:
    """List the model families that were compared with transformers, and the results.

    With MODEL, a name on the hub or a folder, show only its family and explain its row.
    """
    from .models.families import compared, family_of

    for line in compared().lines if model is None else family_of(model).lines(model):
        click.echo(printable(line))


@main.command(
    cls=SettingsCommand,
    takes=lambda one: one.option.panel not in NOT_OF_THE_OPERATOR,
    context_settings=HELP_NAMES,
)
@click.argument("input", type=PLACE)
@count_option("--clips", default=64, help="Most videos in the sample.")
@click.pass_context
def bench(ctx: click.Context, /, input: Path, clips: int, **given: Any) -> None:  # noqa: A002, ARG001
    """Measure the throughput of this machine on the first videos of INPUT, stage by stage and overall.

    Measures reading alone, preparing alone, the model alone with clips in memory, and the whole pipeline, with the same
    options as `caption`; then recommends settings. Writes nothing.
    """
    from rich.console import Console

    from .runners.bench import bench as measure
    from .runners.bench import print_report
    from .runners.settings import build_operator

    operator = build_operator(parameters_of(given))
    try:
        report = measure(operator, input, clips=clips)
    finally:
        operator.close()
    print_report(report, Console())


@main.command(context_settings=HELP_NAMES)
@click.option("--out", type=PATH, default=Path("demo-output"), show_default=True, help="Folder for clips and captions.")
@count_option("--clips", default=12, help="Clips to render.")
@count_option("--candidates", default=4, help="Candidate captions per clip.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="Seed of clips and captions."
)
@click.pass_context
def demo(ctx: click.Context, /, out: Path, clips: int, candidates: int, seed: int) -> None:
    """Render clips, caption them with the bundled model, and check the captions."""
    from rich.console import Console

    from .demo.run import run_demo

    ctx.exit(run_demo(out, clips=clips, candidates=candidates, seed=seed, console=Console()))


def run(
    ctx: click.Context,
    source: str | Path,
    output: str | Path,
    parameters: dict[str, Any],
    settings: dict[str, Any],
    *,
    profile: Path | None,
    cluster: RaySettings | None = None,
) -> None:
    """Caption a file, show progress, print the summary, and exit with its exit code."""
    from .runners.settings import build_operator

    operator = build_operator(parameters)
    caption_file = file_runner(cluster)
    try:
        show(
            ctx, lambda progress: caption_file(operator, source, output, progress=progress, **settings), profile=profile
        )
    finally:
        operator.close()


def file_runner(cluster: RaySettings | None) -> Callable[..., RunSummary]:
    """The function that captions a file: on this machine, or on a cluster."""
    if cluster is None:
        from .runners.run.run import caption_file

        return caption_file
    from .runners.ray.run import caption_file_ray

    return partial(caption_file_ray, cluster=cluster)


def of_run(given: dict[str, Any]) -> dict[str, Any]:
    """Remove the run settings from the given options and return them."""
    from .settings import RunSettings, settings_of

    return taken_from(given, settings_of(RunSettings))


def cluster_of(given: dict[str, Any]) -> RaySettings | None:
    """Remove the cluster settings from the given options and return them; None: no cluster."""
    from .runners.ray.settings import RaySettings
    from .settings import ClusterSettings, settings_of

    named = ClusterSettings(**taken_from(given, settings_of(ClusterSettings)))
    if named.ray is None:
        if named.ray_captioners is not None or named.ray_gpus is not None:
            raise click.UsageError("--ray-captioners and --ray-gpus require --ray")
        return None
    fewest, most = named.ray_captioners or (1, None)
    return RaySettings(named.ray, gpus=named.ray_gpus, min_captioners=fewest, max_captioners=most)


def show(ctx: click.Context, work: Callable[[Any], RunSummary], *, profile: Path | None) -> None:
    """Do a run, show progress, print the summary, and exit with its exit code."""
    from rich.console import Console

    from .runners.report.progress import choose_progress
    from .runners.report.summary import print_summary, write_profile

    summary = work(choose_progress(Console(stderr=True), say))
    print_summary(summary, Console())
    if profile is not None:
        write_profile(summary, profile)
    ctx.exit(summary.exit_code)
