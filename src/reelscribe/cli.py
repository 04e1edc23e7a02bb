"""The commands. They read options, hand them on, and print what comes back; heavy modules are loaded when one runs."""

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
        """An address stays a text; a path would lose a slash of it."""
        return value if "://" in str(value) else Path(value)


PLACE = Place()
NOT_OF_THE_OPERATOR = ("Output", "Run", "Ray cluster")
"""Panels whose options say how a run treats its input and output, and where it runs."""

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
    """A group that ends with one clear line where the user can mend what is wrong."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; what is printed never decides how it ends."""
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
            say(f"stopped{_notes(exc) or '; nothing is written'}")
            ctx.exit(EXIT_INTERRUPTED)
        except click.ClickException as exc:
            exc.message = printable(exc.message)  # type: ignore[misc]
            raise


def say(line: str) -> None:
    """A line for the user, on stderr."""
    click.echo(printable(line), err=True)


def _notes(exc: BaseException) -> str:
    """What is told besides an exception's own text, such as where finished rows are."""
    return "".join(f"; {note}" for note in getattr(exc, "__notes__", ()))


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


@click.group(cls=Commands, context_settings={**HELP_NAMES, "max_content_width": 100})
@click.version_option(__version__, prog_name="reelscribe")
def main() -> None:
    """Captions for video data sets, written by vision-language models."""


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
    "file, a .lance folder, or a folder and --format; also at an address, such as s3://bucket/out.parquet.",
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
    """Caption the videos of INPUT: a data file, a folder of videos, tar shards or other data, or a video.

    Rows hold a text and a list of `videos` (generated rows follow each original), or one `video` (its captions go to
    a field `captions`). Relative video paths are relative to the data file. What failed is in
    OUTPUT.failures.jsonl. A run that was ended goes on when the same command is given again. Exit code 0: every row has
    its caption; 3: some rows failed; 4: more than --max-failures; 1 and 2: wrong settings or usage.
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
    """Run a Data-Juicer recipe whose `process` list holds video_captioning_from_vlm_mapper."""
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
    help="Only videos that failed in this way, such as timeout; may be repeated.  [default: all]",
)
@profile_option()
@click.pass_context
def retry(ctx: click.Context, /, output: Path, kinds: tuple[str, ...], profile: Path | None, **given: Any) -> None:
    """Try the failed videos of a run again, and put what succeeds in its place in OUTPUT.

    The run's own settings are used; the options here replace those that changed nothing but what failed.
    """
    from .runners.run.retry import retry_file

    settings, caption_file = of_run(given), file_runner(cluster_of(given))
    settings |= {"kinds": kinds, "changes": taken_from(given, list(given)), "caption": caption_file}
    show(ctx, lambda progress: retry_file(output, progress=progress, **settings), profile=profile)


@main.command(context_settings=HELP_NAMES)
@click.argument("places", type=PATH, nargs=-1)
@click.option("--clean", is_flag=True, help="Remove what finished runs keep, after a question.")
@click.option("--unfinished", is_flag=True, help="With --clean: of unfinished runs too; what they have done is lost.")
@click.option("--yes", is_flag=True, help="With --clean: do not ask.")
def runs(places: tuple[Path, ...], *, clean: bool, unfinished: bool, yes: bool) -> None:
    """List your runs: state, size, age, output, and where each keeps its journal.

    PLACES, folders or outputs, narrow the list, and find runs there that others began. A run that a process has is
    never removed, nor is any output; without its journal a run cannot go on, be retried or updated.
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
        click.echo("no run to remove")
        return
    if not yes:
        click.confirm(f"remove what {len(chosen):,} runs keep (their outputs stay)?", abort=True)
    for run, reason in known.clean(chosen):
        if reason is not None:
            click.echo(printable(f"kept {run.folder}: {reason}"), err=True)


@main.command(context_settings=HELP_NAMES)
@click.argument("model", required=False)
def models(model: str | None) -> None:
    """List the families of models that were compared with transformers, and what came of each.

    With MODEL, a name on the hub or a folder, only its family, with what its row means.
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
@count_option("--clips", default=64, help="Videos of the sample, at most.")
@click.pass_context
def bench(ctx: click.Context, /, input: Path, clips: int, **given: Any) -> None:  # noqa: A002, ARG001
    """Measure what this machine could do with the first videos of INPUT, and what it does.

    Reading alone, preparing alone, the model alone with clips in memory, and the whole pipeline, with the options that
    `caption` takes; then settings that fit. Writes nothing.
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
@count_option("--candidates", default=4, help="Candidate captions for each clip.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="Seed of clips and captions."
)
@click.pass_context
def demo(ctx: click.Context, /, out: Path, clips: int, candidates: int, seed: int) -> None:
    """Render clips, caption them with the bundled model, and show which captions are right."""
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
    """Caption a file, show how it goes, print the summary, and leave with the exit code."""
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
    """What captions a file: this machine, or a cluster."""
    if cluster is None:
        from .runners.run.run import caption_file

        return caption_file
    from .runners.ray.run import caption_file_ray

    return partial(caption_file_ray, cluster=cluster)


def of_run(given: dict[str, Any]) -> dict[str, Any]:
    """The options that are settings of a run, taken from all that were given."""
    from .settings import RunSettings, settings_of

    return taken_from(given, settings_of(RunSettings))


def cluster_of(given: dict[str, Any]) -> RaySettings | None:
    """The cluster that options name, taken from all that were given; None: no cluster."""
    from .runners.ray.settings import RaySettings
    from .settings import ClusterSettings, settings_of

    named = ClusterSettings(**taken_from(given, settings_of(ClusterSettings)))
    if named.ray is None:
        if named.ray_captioners is not None or named.ray_gpus is not None:
            raise click.UsageError("--ray-captioners and --ray-gpus need --ray")
        return None
    fewest, most = named.ray_captioners or (1, None)
    return RaySettings(named.ray, gpus=named.ray_gpus, min_captioners=fewest, max_captioners=most)


def show(ctx: click.Context, work: Callable[[Any], RunSummary], *, profile: Path | None) -> None:
    """Do a run, show how it goes, print the summary, and leave with the exit code."""
    from rich.console import Console

    from .runners.report.progress import choose_progress
    from .runners.report.summary import print_summary, write_profile

    summary = work(choose_progress(Console(stderr=True), say))
    print_summary(summary, Console())
    if profile is not None:
        write_profile(summary, profile)
    ctx.exit(summary.exit_code)
