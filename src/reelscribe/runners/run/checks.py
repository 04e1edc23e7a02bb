"""Checks of the input and the output before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ...data import Source, Target
from ...data.base import KnowsBytes, check_regular
from ...data.folder import VIDEO_FIELD, VideoFileSource
from ...data.input import Input
from ...data.links import check_file
from ...data.videofolder import check_videos, video_path
from ...errors import DataError
from ...operator import VideoCaptioningFromVLMMapper
from ...rows.one_video_rows import OneVideoRows
from ...types import Sample
from .journal import Journal, remove_run
from .run_folder import PIECES, REPLACES, run_folder


def laid_out(target: Target, given: Input, operator: VideoCaptioningFromVLMMapper) -> Target:
    """The target for rows of this form."""
    form, root = given.form, operator.video_root or given.source.folder
    if not isinstance(form, OneVideoRows):
        return target.laid_out(video_field=None, caption_field=None, root=root, limits=operator.limits)
    folder = run_folder(target.path)
    return target.laid_out(
        video_field=form.column,
        caption_field=form.caption_key,
        root=root,
        limits=operator.limits,
        window_fields=form.names.window_keys,
        window=operator.planner.window,
        pieces=(folder / PIECES).absolute() if target.layout.cut is not None else None,
    )


def may_replace(target: Target, *, overwrite: bool) -> Target:
    """The target, allowed to replace existing videos: now, or by the interrupted run it belongs to."""
    return target.with_layout(replaces=overwrite or (run_folder(target.path) / REPLACES).is_file())


def remember_leave(journal: Journal, target: Target) -> None:
    """Record that the run may replace videos, for when it resumes without the option."""
    if target.layout.replaces:
        (journal.folder / REPLACES).touch()


def forget_leave(journal: Journal) -> None:
    """The output is finished: later runs need the option again."""
    (journal.folder / REPLACES).unlink(missing_ok=True)


def check_failures_place(failures: Path, *, is_named: bool) -> None:
    """Reject a failures file that could not be written.

    Args:
        failures: the file.
        is_named: whether the user named it; otherwise nothing is written through a link of that name.

    Raises:
        DataError: the path is a folder, or such a link.
    """
    check_file(failures.resolve() if is_named else failures, "the failures file")


def check_rows(target: Target, given: Input, *, overwrite: bool) -> None:
    """Reject rows whose captions could not be placed."""
    source = given.source
    if target.format.needs_one_video and target.layout.with_videos and target.layout.video_field is None:
        raise DataError("a saved data set with videos requires rows with one video each; these have lists of videos")
    if target.layout.cut is not None and _is_read_with(target.path, source):
        raise DataError(
            f"parts of videos in {str(target.path.parent)!r} would be read as inputs from {str(source.path)!r} the "
            "next time; choose another folder for the output"
        )
    if target.format.table is not None:
        fresh = not overwrite and not run_folder(target.path).exists()
        check_videos(rows_without_own_fields(given), target.path, target.layout, fresh=fresh)


def _is_read_with(path: Path, source: Source) -> bool:
    """Whether videos next to a file are rows of the source."""
    if not isinstance(source, VideoFileSource) or not isinstance(source.path, Path) or not source.path.is_dir():
        return False
    return path.resolve().is_relative_to(source.path.resolve())


def check_copies(target: Target, given: Input) -> None:
    """Refuse to copy videos into the folder they are read from, where they would be read as new ones.

    Raises:
        DataError: they would be copied there.
    """
    source = given.source
    folder = source.path.resolve() if isinstance(source.path, Path) and source.path.is_dir() else None
    into = target.path.parent.resolve()
    if folder is None or target.format.table is None or not target.layout.with_videos:
        return
    if not isinstance(source, VideoFileSource) or not into.is_relative_to(folder):
        return
    for row in islice(source, given.limit):
        video = video_path(row[VIDEO_FIELD], target.layout)
        if not video.is_relative_to(into):
            raise DataError(
                f"the copy of {str(video)!r} in {str(into)!r} would be read as a new video of {str(folder)!r} by the "
                "next command; choose an output outside that folder, or the folder itself"
            )


def rows_without_own_fields(given: Input) -> Iterator[Sample]:
    """The rows; reject those with their own captions, since a table cannot hold them next to the generated ones.

    Raises:
        DataError: names the first such row and its field.
    """
    for number, row in enumerate(islice(given.source, given.limit)):
        if own := given.form.names.own_fields(row):
            raise DataError(
                f"row {number} of {str(given.source.path)!r} already has a field {own[0]!r}, which would be "
                "overwritten; choose another field for captions with --caption-key (caption_key)"
            )
        yield row


def check_free(target: Target, *, overwrite: bool) -> None:
    """Make room for the output, or check that its name is free.

    Raises:
        DataError: something exists there that belongs to no run.
    """
    target.check_replaceable()
    if overwrite:
        remove_run(target.path)
        return
    if target.path.exists() and not run_folder(target.path).exists():
        raise DataError(
            f"{str(target.path)!r} already exists, and no run can resume it; choose another name, or replace it "
            "(--overwrite)"
        )


def check_outputs(output: Path, failures: Path, source: Source) -> None:
    """Refuse to overwrite an input, now or when the run is started again.

    Raises:
        DataError: a file to be written is an input, or would become one, or both outputs are the same file.
    """
    if output.resolve() == failures.resolve():
        raise DataError(f"the output and the failures file are both {str(output)!r}; choose another name for one")
    folder = source.path.resolve() if isinstance(source.path, Path) and source.path.is_dir() else None
    suffixes = {path.suffix.lower() for path in source.files()} if folder is not None else set()
    for path in (output, failures):
        if folder is not None and folder in path.resolve().parents and path.suffix.lower() in suffixes:
            raise DataError(f"{str(path)!r} is in the input folder and would be read as input; choose another name")
    check_regular(output, role="output")
    check_regular(failures, role="failures file")
    targets = {path.resolve(): path for path in (output, failures) if path.exists()}
    for read in source.files() if targets else ():
        real = read.resolve()
        for place in (real, *real.parents):
            if place in targets:
                raise DataError(
                    f"the output {str(targets[place])!r} would overwrite the input {str(read)!r}; choose another name"
                )


def check_first_row(target: Target, given: Input) -> None:
    """Reject rows whose values the output's format cannot hold."""
    source, new_fields = given.source, given.form.new_fields()
    sink = target.open_part(target.path, schema=source.schema(), new_fields=new_fields)
    if given.first is not None:
        sink.check({**given.first, **dict.fromkeys(new_fields)})
    if not target.format.holds_bytes and given.limit is None and isinstance(source, KnowsBytes):
        for name in source.binary_columns():
            raise DataError(
                f"the column {name!r} of {str(source.path)!r} contains bytes, which {target.format.name} cannot hold; "
                "write to a .parquet file instead"
            )
