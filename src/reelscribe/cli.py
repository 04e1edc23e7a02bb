"""The commands. They read options, hand them on, and print what comes back; heavy modules are loaded when one runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from .console import words_come_second
from .errors import ReelscribeError, SettingsError
from .printable import one_line, printable

if TYPE_CHECKING:
    from .runners.ray.settings import RaySettings
    from .runners.report.summary import RunSummary

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

RUN_SETTINGS = (
    "limit", "failures", "overwrite", "update", "recheck", "discard_edits", "max_failures", "max_row_bytes", "format",
    "with_videos", "cut",
)  # fmt: skip
"""Options that are fields of `RunSettings`; the others are parameters of the operator."""

RAY_SETTINGS = ("ray", "ray_captioners", "ray_gpus")
"""Options that say which cluster, and how much of it."""

NAMED_PARAMETERS = {
    "model_params": ("base_url", "device", "dtype"),
    "sampling_params": ("max_tokens", "temperature", "top_p", "top_k"),
}
"""Parameters inside another one that have an option of their own."""

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class Place(click.ParamType[Any]):
    """A path, or an address such as s3://bucket/key."""

    name = "path"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        """An address stays a text; a path would lose a slash of it."""
        return value if "://" in str(value) else Path(value)


class RowOf(click.Choice[str]):
    """A name in a table, which is loaded when it is first needed: packages may bring rows of it.

    Args:
        module: where the table is, below this package.
        table: its name there.
    """

    def __init__(self, module: str, table: str) -> None:
        self._place = module, table
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names."""
        module, table = self._place
        return tuple(getattr(importlib.import_module(f".{module}", __package__), table))


PLACE = Place()
BACKENDS = RowOf("models.backends", "BACKENDS")
KEEP_MODES = RowOf("answering.selection", "SELECTORS")
FORMATS = RowOf("data", "BY_NAME")
CUTS = click.Choice(["copy", "exact"])


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


def key_values(ctx: click.Context, param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` pairs, with the values read as YAML: `8` is a number, `true` a truth value, `[a, b]` a list."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key.strip() or not equals:
            raise click.BadParameter(f"{pair!r} must be KEY=VALUE", ctx, param)
        if key.strip() in values:
            raise click.BadParameter(f"{key.strip()} is given more than once", ctx, param)
        values[key.strip()] = _yaml(text, ctx, param)
    return values


def _yaml(text: str, ctx: click.Context, param: click.Parameter) -> Any:
    from .runners.settings import read_yaml, shown

    try:
        return read_yaml(text)
    except SettingsError as exc:
        raise click.BadParameter(f"{shown(text)} {exc}", ctx, param) from exc


def options(*declared: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in the order given."""

    def decorate(command: F) -> F:
        for add in reversed(declared):
            command = add(command)
        return command

    return decorate


option = click.option
count_option = partial(click.option, type=click.IntRange(min=1), metavar="N")
seconds_option = partial(click.option, type=click.FloatRange(min=0), metavar="S")
pairs_option = partial(click.option, callback=key_values, multiple=True, metavar="KEY=VALUE")


def servers(_ctx: click.Context, _param: click.Parameter, urls: tuple[str, ...]) -> str | list[str] | None:
    """One address, or several."""
    return (urls[0] if len(urls) == 1 else list(urls)) if urls else None


MODEL_OPTIONS = options(
    option("--model", "hf_model", metavar="NAME", help="Model on the hub, or a local folder; reelscribe/shapes is the "
           "bundled demonstration model.  [default: Qwen/Qwen3-VL-8B-Instruct]"),
    option("--vllm", "enable_vllm", is_flag=True, default=None, help="Run the model with vLLM, not transformers."),
    option("--server", "base_url", multiple=True, callback=servers, metavar="URL", help="Send videos to this "
           "OpenAI-compatible server, which runs the model, e.g. http://localhost:8000/v1; repeat it for several that "
           "share them. --model may then be left out where they serve one."),
    option("--backend", type=BACKENDS, help="What runs the model; installed packages may bring more.  [default: server "
           "with --server, vllm with --vllm, else hf, which is transformers]"),
    option("--device", metavar="DEVICE", help="Device of the model: cpu, cuda, cuda:1, mps.  [default: best]"),
    option("--dtype", metavar="DTYPE", help="Number type of the model: bfloat16, float16, float32."),
    count_option("--batch-size", help="Most videos the model, or each server, works on at once."),
    pairs_option("--model-param", "model_params", help="Parameter for loading the model; may be repeated."),
)  # fmt: skip

CAPTION_OPTIONS = options(
    count_option("--candidates", "caption_num", help="Candidate captions for each video.  [default: 1]"),
    option("--keep", "keep_candidate_mode", type=KEEP_MODES, help="Which to keep.  [default: random_any]"),
    option("--drop-original", is_flag=True, help="Leave original rows, and rows that failed, out of the output."),
    option("--prompt", metavar="TEXT", help="Prompt for every video."),
    option("--prompt-key", metavar="FIELD", help="Field with a row's own prompt."),
    option("--system-prompt", metavar="TEXT", help="System message for every video."),
    count_option("--max-tokens", help="Longest caption, in tokens.  [default: 512]"),
    option("--temperature", type=click.FloatRange(min=0), metavar="X", help="0 takes the likeliest token each time."),
    option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="X", help="Sample from the likeliest tokens "
           "that make up this share."),
    option("--top-k", type=click.IntRange(min=-1), metavar="N", help="Sample from this many tokens; 0 is no limit."),
    option("--thinking", type=click.Choice(["off", "on"]), help="Whether the model reasons first, where its chat "
           "template has a switch; one without reasons as it does.  [default: off]"),
    count_option("--thinking-tokens", help="Longest reasoning, in tokens; it does not count for --max-tokens.  "
                 "[default: 2048]"),
    pairs_option("--sampling-param", "sampling_params", help="Another parameter of generation; may be repeated."),
    option("--seed", type=int, metavar="N", help="Seed of everything random.  [default: 0]"),
)  # fmt: skip

FRAME_OPTIONS = options(
    option("--fps", type=click.FloatRange(min=0, min_open=True), metavar="X", help="Frames to show per second of "
           "video.  [default: the model's]"),
    count_option("--num-frames", help="Frames to show of each video, instead of --fps."),
    count_option("--min-frames", help="Fewest frames to show."),
    count_option("--max-frames", help="Most frames to show."),
    option("--fit", is_flag=True, default=None, help="Of a video that is longer than the model takes, show as many "
           "frames as fit, evenly spread; without it such a video fails as too_many_tokens."),
    count_option("--min-pixels", help="Smallest size of a shown frame, height x width."),
    count_option("--max-pixels", help="Largest size of a shown frame, height x width."),
    seconds_option("--start", "start_seconds", help="Look at videos from this second on."),
    seconds_option("--end", "end_seconds", help="Look at videos up to this second."),
    seconds_option("--time-tolerance", "time_tolerance_seconds", help="Take frames up to this many seconds from their "
                   "moments where that is cheaper to decode.  [default: 0, the very frames]"),
    option("--pixel-aspect", type=click.Choice(["stored", "display"]), help="Show pixels that are not square as "
           "squares, or in the shape that the file gives them.  [default: stored]"),
    option("--tone-map", is_flag=True, default=None, help="Show HDR video (PQ and HLG) as SDR."),
    option("--deinterlace", is_flag=True, default=None, help="Show one field of interlaced frames, not both at once."),
)  # fmt: skip

READ_OPTIONS = options(
    option("--max-source-seconds", type=click.FloatRange(min=0, min_open=True), metavar="S", help="A longer video "
           "fails as too_long.  [default: 24 hours]"),
    count_option("--max-source-pixels", help="A video with larger frames, height x width, fails as too_large.  "
                 "[default: 8192 x 8192]"),
    count_option("--max-source-frames", help="A video with more frames fails as too_long.  [default: 10 million]"),
    count_option("--max-source-bytes", help="A larger file fails as too_large.  [default: no limit]"),
    option("--max-read-seconds", type=click.FloatRange(min=0, min_open=True), metavar="S", help="A video that takes "
           "longer to read, twice, fails as timeout.  [default: 300]"),
    count_option("--max-read-memory", "max_read_memory_mib", help="A video whose reading takes more memory, in MiB, "
                 "twice, fails as out_of_memory.  [default: 4096]"),
    option("--media-root", metavar="DIR", help="Read no file outside of this folder, links resolved: not_allowed.  "
           "[default: anywhere]"),
    option("--allow-remote", is_flag=True, default=None, help="Read videos at https://, s3://, gs:// and hf:// "
           "addresses; without it they fail as not_allowed."),
    option("--allow-images", is_flag=True, default=None, help="Take still pictures as clips of one frame, of folders "
           "too; without it they fail as not_allowed."),
    option("--video-cache", metavar="DIR", help="Keep videos at addresses in this folder.  [default: they are not "
           "kept]"),
    count_option("--video-cache-mib", help="Most MiB to keep there.  [default: 10240]"),
    count_option("--workers", "num_proc", help="Processes that read videos.  [default: by cores and need]"),
    count_option("--prefetch-mib", help="Most MiB of frames that are read before the model takes them.  [default: 128 "
                 "for each process that reads]"),
)  # fmt: skip

FIELD_OPTIONS = options(
    option("--text-key", metavar="FIELD", help="Field with the text.  [default: text]"),
    option("--video-key", metavar="FIELD", help="Field with the video, or the list of videos.  [default: videos, else "
           "video]"),
    option("--caption-key", metavar="FIELD", help="Also write kept captions to this field.  [default with one video a "
           "row: captions]"),
    option("--failure-key", metavar="FIELD", help="Also write failures to this field."),
    option("--finish-reason-key", metavar="FIELD", help="Also write why captions ended, stop or length, here."),
    option("--reasoning-key", metavar="FIELD", help="Also write the reasoning before captions to this field."),
)  # fmt: skip


def failure_limit(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    """A number of rows, or a share of them."""
    from .runners.run.failures import FailureLimit

    try:
        return FailureLimit() if text is None else FailureLimit.parse(text)
    except SettingsError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


GO_OPTIONS = options(
    count_option("--max-row-bytes", help="Stop at an input row that is larger than this, decompressed.  [default: 256 "
                 "MiB]"),
    option("--max-failures", callback=failure_limit, metavar="N|P%", help="Stop with exit code 4 when more rows have "
           "failed than this number, or this share (from 100 rows on).  [default: no limit]"),
    option("--profile", type=PATH, metavar="FILE", help="Write how long each stage was at work to this JSON file."),
)  # fmt: skip

AGAIN_OPTIONS = options(
    option("--recheck", is_flag=True, help="Caption again the videos that were replaced under their names since they "
           "were captioned (by size and time of change)."),
    option("--discard-edits", is_flag=True, help="Drop the captions that were edited by hand in the output.  [default: "
           "they are kept]"),
)  # fmt: skip

RUN_OPTIONS = options(
    count_option("--limit", help="Stop after the first N rows."),
    option("--failures", type=PATH, metavar="FILE", help="Where failures go, a .jsonl or .parquet file.  [default: "
           "OUTPUT.failures.jsonl]"),
    option("--overwrite", is_flag=True, help="Start afresh, and replace the output that is there."),
    option("--update", is_flag=True, help="Where settings or the input differ from those the run began with: do again "
           "what that affects, and keep the other captions."),
    AGAIN_OPTIONS,
    GO_OPTIONS,
)  # fmt: skip


def captioners(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Fewest and most captioners."""
    from .runners.ray.settings import captioner_range

    try:
        return None if text is None else captioner_range(text)
    except SettingsError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


RAY_OPTIONS = options(
    option("--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]", help="Run on the Ray cluster at this "
           "address, or auto; without an address, on one that is started on this machine for the run. Without an "
           "address it stands last, or before another option."),
    option("--ray-captioners", callback=captioners, metavar="N|MIN:MAX", help="Captioners on the cluster.  [default: 1 "
           "and, with GPUs, as many as there is room for]"),
    option("--ray-gpus", type=click.FloatRange(min=0), metavar="X", help="GPUs of each captioner, a fraction or "
           "several.  [default: 1, or tensor_parallel_size]"),
)  # fmt: skip


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


@click.group(cls=Commands, context_settings={**HELP_NAMES, "max_content_width": 100})
@click.version_option(__version__, prog_name="reelscribe")
def main() -> None:
    """Captions for video data sets, written by vision-language models."""


@main.command(context_settings=HELP_NAMES)
@click.argument("input", type=PLACE)
@option(
    "-o",
    "--output",
    type=PLACE,
    required=True,
    help="A .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .csv, .tsv or .tar "
    "file, a .lance folder, or a folder and --format; also at an address, such as s3://bucket/out.parquet.",
)
@option(
    "--format",
    type=FORMATS,
    help="What a folder is written as: tar shards, a .txt beside each video with "
    "metadata.jsonl, or a saved data set.  [default: by the suffix]",
)
@option(
    "--with-videos",
    is_flag=True,
    help="Put the videos into .tar files, webdataset shards and saved data sets, or copy them to a videofolder.",
)
@option(
    "--cut",
    type=CUTS,
    help="With --with-videos, for rows about a part of a video: cut the part out for the videofolder, copied from the "
    "key frame before it on, or exact by encoding it anew.  [default: the whole video is copied]",
)
@MODEL_OPTIONS
@CAPTION_OPTIONS
@FRAME_OPTIONS
@READ_OPTIONS
@FIELD_OPTIONS
@RUN_OPTIONS
@RAY_OPTIONS
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
    settings = {name: given.pop(name) for name in RUN_SETTINGS}
    cluster = cluster_of(*(given.pop(name) for name in RAY_SETTINGS))
    run(ctx, input, output, parameters_of(given), settings, profile=profile, cluster=cluster)


@main.command(context_settings=HELP_NAMES)
@option("--config", type=PATH, required=True, help="The recipe, a YAML file.")
@RUN_OPTIONS
@RAY_OPTIONS
@click.pass_context
def process(ctx: click.Context, /, config: Path, profile: Path | None, **settings: Any) -> None:
    """Run a Data-Juicer recipe whose `process` list holds video_captioning_from_vlm_mapper."""
    from .recipe import read_recipe

    cluster = cluster_of(*(settings.pop(name) for name in RAY_SETTINGS))
    recipe = read_recipe(config)
    for note in recipe.notes:
        say(f"note: {note}")
    run(ctx, recipe.dataset_path, recipe.export_path, recipe.parameters, settings, profile=profile, cluster=cluster)


@main.command(context_settings=HELP_NAMES)
@click.argument("output", type=PLACE)
@option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="Only videos that failed in this way, such as timeout; may be repeated.  [default: all]",
)
@READ_OPTIONS
@count_option("--batch-size", help="Most videos the model works on at once.")
@AGAIN_OPTIONS
@GO_OPTIONS
@RAY_OPTIONS
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    output: Path,
    kinds: tuple[str, ...],
    profile: Path | None,
    max_failures: Any,
    recheck: bool,
    discard_edits: bool,
    max_row_bytes: int | None,
    **given: Any,
) -> None:
    """Try the failed videos of a run again, and put what succeeds in its place in OUTPUT.

    The run's own settings are used; the options here replace those that changed nothing but what failed.
    """
    from .runners.run.retry import retry_file

    caption_file = file_runner(cluster_of(*(given.pop(name) for name in RAY_SETTINGS)))
    settings = {
        "kinds": kinds,
        "changes": {name: value for name, value in given.items() if value is not None},
        "recheck": recheck,
        "discard_edits": discard_edits,
        "max_failures": max_failures,
        "max_row_bytes": max_row_bytes,
        "caption": caption_file,
    }
    show(ctx, lambda progress: retry_file(output, progress=progress, **settings), profile=profile)


@main.command(context_settings=HELP_NAMES)
@click.argument("places", type=PATH, nargs=-1)
@option("--clean", is_flag=True, help="Remove what finished runs keep, after a question.")
@option("--unfinished", is_flag=True, help="With --clean: of unfinished runs too; what they have done is lost.")
@option("--yes", is_flag=True, help="With --clean: do not ask.")
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


@main.command(context_settings=HELP_NAMES)
@click.argument("input", type=PLACE)
@count_option("--clips", default=64, show_default=True, help="Videos of the sample, at most.")
@MODEL_OPTIONS
@CAPTION_OPTIONS
@FRAME_OPTIONS
@READ_OPTIONS
@FIELD_OPTIONS
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
@option("--out", type=PATH, default=Path("demo-output"), show_default=True, help="Folder for clips and captions.")
@count_option("--clips", default=12, show_default=True, help="Clips to render.")
@count_option("--candidates", default=4, show_default=True, help="Candidate captions for each clip.")
@option(
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
    settings = {name: value for name, value in settings.items() if value is not None}
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


def cluster_of(address: str | None, captioners: tuple[int, int] | None, gpus: float | None) -> RaySettings | None:
    """The cluster that options name; None: no cluster."""
    from .runners.ray.settings import RaySettings

    if address is None:
        if captioners is not None or gpus is not None:
            raise click.UsageError("--ray-captioners and --ray-gpus need --ray")
        return None
    fewest, most = captioners or (1, None)
    return RaySettings(address, gpus=gpus, min_captioners=fewest, max_captioners=most)


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


def parameters_of(given: dict[str, Any]) -> dict[str, Any]:
    """The operator's parameters from options; those not given are left to the operator."""
    parameters = {name: value for name, value in given.items() if value is not None}
    if parameters.pop("drop_original"):
        parameters["keep_original_sample"] = False
    for group, names in NAMED_PARAMETERS.items():
        named = {name: parameters.pop(name) for name in names if name in parameters}
        twice = sorted(set(named) & set(parameters[group]))
        if twice:
            raise click.UsageError(f"{twice[0]} is given more than once")
        parameters[group] = {**named, **parameters[group]} or None
    return parameters
