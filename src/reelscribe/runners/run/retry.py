"""Retry the failed videos of a run with the run's own settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ...data.videofolder import NAMES as TABLE_NAMES
from ...errors import DataError, SettingsError
from ...settings import MAX_ROW_BYTES, FailureLimit, RunSettings, operator_settings
from ...stores import AnyPath, StoredPath, located
from ...types import FAILURE_KINDS
from ..report.progress import Progress
from ..report.summary import RunSummary
from ..settings import build_operator
from .journal import Journal
from .known_runs import is_noted
from .run import caption_file
from .run_folder import run_folder
from .upload import local_place

_TRUSTED = ("trust_remote_code", "base_url", "api_key_env", "proxies", "token", "cache_dir")
"""Keys of `model_params` that are taken from a journal only if this user started the run."""


def retry_file(
    output: str | AnyPath,
    *,
    kinds: Collection[str] = (),
    changes: Mapping[str, Any] | None = None,
    recheck: bool = False,
    discard_edits: bool = False,
    max_failures: FailureLimit | None = None,
    max_row_bytes: int | None = None,
    progress: Progress | None = None,
    caption: Callable[..., RunSummary] = caption_file,
) -> RunSummary:
    """Retry the failures of a run, and put the new captions in their place in the output.

    The output stays unchanged until the new one is complete. An interrupted retry resumes when it is started again.

    Args:
        output: the output of the run.
        kinds: retry only failures of these kinds; empty: all.
        changes: operator parameters that replace the run's; only those that do not affect captions.
        recheck: caption again the videos that were replaced since they were captioned.
        discard_edits: discard captions that were edited by hand in the output, instead of keeping them.
        max_failures: how many rows may fail.
        max_row_bytes: the largest row to read; None: the run's.
        progress: receives the progress of the run.
        caption: the function that runs it: `caption_file`, or `caption_file_ray` with its cluster.

    Raises:
        DataError: there is no run with this output, or its input has changed.
        SettingsError: an unknown kind, or the run was started from Python with a captioner of its own.
    """
    place, changes = _of_folder(located(output)), dict(changes or {})
    _check_kinds(kinds)
    command = _command_of(local_place(place) if isinstance(place, StoredPath) else place)
    operator = build_operator({**command["parameters"], **changes})
    failures = command["failures"]
    settings = RunSettings(
        limit=command["limit"],
        retry=kinds,
        recheck=recheck,
        discard_edits=discard_edits,
        changed=tuple(changes),
        max_failures=max_failures or FailureLimit(),
        failures=None if failures is None else Path(failures),
        format=command.get("format"),
        with_videos=command.get("with_videos", False),
        cut=command.get("cut"),
        max_row_bytes=max_row_bytes or command.get("max_row_bytes", MAX_ROW_BYTES),
    )
    try:
        return caption(operator, command["input"], place, progress=progress, settings=settings)
    except (DataError, OSError) as exc:
        if command.get("input_had_credentials"):
            exc.add_note(
                "the address of the input contained credentials, which are not stored: put them where the store's "
                "client finds them, or call caption_file from Python with the whole address and retry=()"
            )
        raise
    finally:
        operator.close()


def _check_kinds(kinds: Collection[str]) -> None:
    for kind in kinds:
        if kind not in FAILURE_KINDS:
            raise SettingsError(f"unknown failure kind {kind!r}; expected one of {', '.join(FAILURE_KINDS)}")


def _of_folder(output: AnyPath) -> AnyPath:
    """The output of the run; for a folder with a single table, that table."""
    if isinstance(output, StoredPath) or run_folder(output).exists():
        return output
    tables = [output / name for name in TABLE_NAMES if output.is_dir() and run_folder(output / name).exists()]
    return tables[0] if len(tables) == 1 else output


def _command_of(output: Path) -> dict[str, Any]:
    """The settings of the run with this output."""
    if not run_folder(output).exists():
        raise DataError(f"no run with the output {str(output)!r} was found: {str(run_folder(output))!r} does not exist")
    is_own = is_noted(run_folder(output))
    with Journal(run_folder(output)) as journal:
        command: dict[str, Any] | None = journal.command()
    if command is None:
        raise SettingsError(
            f"the run with the output {str(output)!r} used a captioner passed from Python: call caption_file with that "
            "captioner and retry=()"
        )
    named = [] if is_own else _trusted(command)
    if named:
        raise SettingsError(
            f"the run in {str(run_folder(output))!r} was not started by this user on this machine, and names "
            f"{', '.join(named)}: run the `reelscribe caption` command with your own settings once, then retry"
        )
    return command


def _trusted(command: Mapping[str, Any]) -> list[str]:
    """Settings that are only accepted from the user's own run: where keys and videos are sent, code that is run, and
    files that are replaced."""
    parameters = command["parameters"]
    model = parameters.get("model_params")
    named = [f"{name}={model[name]!r}" for name in _TRUSTED if isinstance(model, dict) and model.get(name)]
    named += [f"failures={command['failures']!r}"] if command["failures"] is not None else []
    own = [name for name, one in operator_settings().items() if one.option.needs_own_run]
    named += [f"{name}={parameters[name]!r}" for name in own if parameters.get(name)]
    return named
