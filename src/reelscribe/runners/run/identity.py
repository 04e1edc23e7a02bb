"""What makes two runs the same: the input, the rules for rows, and everything that determines the model's output.

Plain values, compared by name, so that a message can say what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...answering.checks import CHECKS
from ...data import Source, Target
from ...data.base import size_now
from ...data.folder import VideoFileSource
from ...models import backend_of, identity_packages, model_revision
from ...models.captioner import DEFAULT_MODEL, ModelSpec, ThinkingSettings
from ...models.names import local_folder
from ...operator import VideoCaptioningFromVLMMapper
from ...printable import redacted
from ...settings import MAX_ROW_BYTES, Scope, counted, is_stricter
from ...stores import AnyPath, StoredPath, located
from ...types import CaptionRequest

WITH_PARTS = ("model_params", "sampling_params")
"""Values whose keys are listed separately."""
LONGEST_VALUE = 200
"""Most characters of a value that a message shows."""
CHANGED_FILES = "the input files have changed"
"""The text for a difference in `input_files`."""
BY_NAMES = "names "
"""Prefix of the digest of a folder's video names; for other inputs, sizes and modification times count too."""
TRIES = 5
"""How often the size of a growing input is checked before it is accepted."""


@dataclass(frozen=True)
class RunIdentity:
    """A run's identity, as plain values by name."""

    rows: dict[str, Any]
    """The input and the rules for its rows."""
    writing: dict[str, Any]
    """Everything that determines the answer to a request: model, sampling, frames, versions."""

    @classmethod
    def of(
        cls, operator: VideoCaptioningFromVLMMapper, source: Source, target: Target, *, limit: int | None
    ) -> RunIdentity:
        """The identity of a new run."""
        given = operator.parameters
        rows = counted(given, Scope.ROWS)
        rows |= {"media_root": _absolute(given["media_root"])}
        rows |= {"input": _place(source.path), "input_files": _input_digest(source), "limit": limit}
        rows |= {"format": target.format.name if target.format.is_named else target.path.suffix}
        rows |= {"with_videos": True} if target.layout.with_videos else {}
        rows |= {"cut": target.layout.cut} if target.layout.cut is not None else {}
        brought = [name for name in operator.planner.acceptance.checks if name not in CHECKS.built_in]
        rows |= {"checks": brought} if brought else {}
        writing = counted(given, Scope.ANSWER)
        model_params = _with_adapter(given["model_params"] or {})
        if operator.spec is not None:
            model_params = _without_free(model_params, operator.spec)
        writing |= {"model_params": model_params, "sampling_params": given["sampling_params"] or {}}
        writing |= {"hf_model": _model(given["hf_model"] or DEFAULT_MODEL), **_spec(given["captioner"])}
        writing |= {"video_root": _place(operator.video_root or source.folder)}
        writing |= {"captioner": _captioner(operator), "model_revision": _revision(operator)}
        writing |= {f"version of {name}": number for name, number in _versions(operator).items()}
        return cls(*(_plain({**part, **_parts(part)}) for part in (rows, writing)))

    @classmethod
    def at_one_time(
        cls, operator: VideoCaptioningFromVLMMapper, source: Source, target: Target, *, limit: int | None
    ) -> RunIdentity:
        """The identity of a run that reads its input as it is at this moment, though it may be growing."""
        for _ in range(TRIES):
            identity = cls.of(operator, source, target, limit=limit)
            if not _catch_up(source):
                break
        return identity

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for storage."""
        return {"rows": self.rows, "writing": self.writing}

    def differences(self, kept: Mapping[str, Any], *, ignore: Collection[str] = ()) -> list[str]:
        """Differences from a stored identity, one text per name that is not ignored.

        A model revision that is not known yet is not a difference.
        """
        before = {**kept["rows"], **kept["writing"]}
        before["input"] = redacted(before["input"])
        now = {**self.rows, **self.writing}
        if now["input"] != before["input"]:
            ignore = (*ignore, "input_files")
        unknown = ["model_revision"] if None in (now["model_revision"], before["model_revision"]) else []
        names = [name for name in {**before, **now} if name not in (*ignore, *unknown)]
        changed = [name for name in names if before.get(name) != now.get(name)]
        parts = [name for name in changed if name not in WITH_PARTS]
        return [_told(name, before.get(name), now.get(name)) for name in parts or changed]

    def brought_up(self, kept: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
        """A stored identity in this version's form: earlier ones of a video folder included sizes and modification
        times."""
        before, now = kept["rows"].get("input_files"), self.rows["input_files"]
        if not now.startswith(BY_NAMES) or str(before).startswith(BY_NAMES):
            return kept
        if kept["rows"].get("input") != self.rows["input"] or before != _files_digest(source.files()):
            return kept
        return {**kept, "rows": {**kept["rows"], "input_files": now}}

    def has_changed(self, source: Source) -> bool:
        """Whether the files of an input changed; a folder of videos is not listed again."""
        return bool(_input_digest(source) != self.rows["input_files"])

    def is_stricter(self, kept: Mapping[str, Any]) -> bool:
        """Whether a video that was read under the stored limits may be rejected under these."""
        return is_stricter(kept["rows"], self.rows)

    def with_revision(self, operator: VideoCaptioningFromVLMMapper) -> RunIdentity:
        """The same, with the model's current revision."""
        return RunIdentity(self.rows, {**self.writing, "model_revision": _revision(operator)})

    def with_known_revision(self, kept: Mapping[str, Any]) -> RunIdentity:
        """The same, with the stored revision if the model's is not known yet."""
        known = self.writing["model_revision"] or kept["writing"]["model_revision"]
        return RunIdentity(self.rows, {**self.writing, "model_revision": known})

    def digest(self, request: CaptionRequest) -> bytes:
        """16 bytes that two requests share if they must get the same answer.

        The request's seed represents the text, the video's value and the run's seed, from which it is derived.
        """
        asked = [request.seed, request.prompt, request.system_prompt, request.num_candidates]
        window = [request.window.start_seconds, request.window.end_seconds]
        digest = self._writing_digest.copy()
        digest.update(json.dumps([asked, window]).encode("ascii"))
        return digest.digest()

    @cached_property
    def _writing_digest(self) -> hashlib.blake2b:
        return hashlib.blake2b(json.dumps(self.writing, sort_keys=True).encode("ascii"), digest_size=16)


def command_of(
    operator: VideoCaptioningFromVLMMapper,
    source: Source,
    *,
    limit: int | None,
    failures: Path | None,
    format: str | None = None,  # noqa: A002
    with_videos: bool = False,
    cut: str | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> dict[str, Any] | None:
    """Everything needed to redo the run from its output alone, without secrets; None: it has a captioner object."""
    given = portable_parameters(operator)
    if given.pop("captioner") is not None:
        return None
    secrets = () if operator.spec is None else backend_of(operator.spec).secret_options
    model_params = {k: v for k, v in (given["model_params"] or {}).items() if k not in secrets}
    if "cache_dir" in model_params:
        model_params["cache_dir"] = _absolute(model_params["cache_dir"])
    if "base_url" in model_params:
        model_params["base_url"] = _without_credentials(model_params["base_url"])
    given["model_params"] = model_params or None
    given["video_root"] = given["video_root"] and redacted(given["video_root"])
    place = named(source.path)
    return {
        "input": redacted(place),
        "input_had_credentials": redacted(place) != place,
        "limit": limit,
        "failures": None if failures is None else str(failures.absolute()),
        "format": format,
        "with_videos": with_videos,
        "cut": cut,
        "max_row_bytes": max_row_bytes,
        "parameters": _plain(given),
    }


def portable_parameters(operator: VideoCaptioningFromVLMMapper) -> dict[str, Any]:
    """The operator's parameters for another process, whose current folder may differ."""
    given = operator.parameters
    return {
        **given,
        "hf_model": _model(given["hf_model"]),
        "model_params": given["model_params"] and _with_adapter(given["model_params"]),
        "video_root": _absolute(given["video_root"]),
        "media_root": _absolute(operator.limits.media_root),
    }


def _place(path: AnyPath) -> str:
    """A resolved path, or an address without credentials."""
    return redacted(path.url) if isinstance(path, StoredPath) else str(path.resolve())


def named(path: AnyPath) -> str:
    """A path made absolute but otherwise as given, or an address."""
    return path.url if isinstance(path, StoredPath) else str(path.absolute())


def _without_credentials(addresses: Any) -> Any:
    if isinstance(addresses, str):
        return redacted(addresses)
    return [_without_credentials(one) for one in addresses] if isinstance(addresses, list | tuple) else addresses


def _input_digest(source: Source) -> str:
    """Digest of an input: the names of videos, which may be replaced; names, sizes and modification times of data
    files."""
    if not isinstance(source, VideoFileSource):
        return _files_digest(source.files())
    digest = hashlib.blake2b(digest_size=8)
    for path in source.files():
        digest.update(repr(path.url if isinstance(path, StoredPath) else str(path)).encode("utf-8", "backslashreplace"))
    return BY_NAMES + digest.hexdigest()


def _catch_up(source: Source) -> bool:
    """Extend a source to the current end of its file; returns whether that has moved."""
    size = getattr(source, "size", None)
    now = None if size is None else size_now(source.path)
    if now is None or now == size:
        return False
    source.size = now  # type: ignore[attr-defined]
    return True


def input_bytes(source: Source) -> int:
    """Total size of an input's data files; 0 for videos and remote inputs."""
    files = () if isinstance(source, VideoFileSource) else source.files()
    return sum(size_now(path) or 0 for path in files)


def _files_digest(files: Iterable[AnyPath]) -> str:
    """Names, sizes and modification times, as a short text."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        digest.update(repr(_mark(path)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _mark(path: AnyPath) -> tuple[str, Any]:
    if isinstance(path, StoredPath):
        return redacted(path.url), _change(path.stat()) if path.exists() else None
    try:
        return os.path.realpath(path), _change(os.stat(path))  # noqa: PTH116 - a `Path` remembers its parts
    except OSError:
        return os.path.realpath(path), None


def _change(status: Any) -> tuple[Any, Any]:
    return status.st_size, status.st_mtime_ns


def _absolute(path: Any) -> str | None:
    return None if path is None else named(located(path))


def _model(name: str) -> str:
    """The name of a model; a local folder is made absolute."""
    folder = local_folder(name)
    return name if folder is None else str(folder.absolute())


def _with_adapter(options: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a model, with an adapter's folder made absolute."""
    adapter = options.get("adapter")
    return {**options, "adapter": _model(adapter)} if isinstance(adapter, str) else dict(options)


def _captioner(operator: VideoCaptioningFromVLMMapper) -> str | None:
    """The class of a captioner passed from Python; None: the operator loads its own."""
    given = operator.parameters["captioner"]
    if given is None:
        return None
    return f"{type(given).__module__}.{type(given).__qualname__}"


def _spec(captioner: Any) -> dict[str, Any]:
    """The values of a spec passed from Python; nothing for a captioner object."""
    if not isinstance(captioner, ModelSpec):
        return {}
    options = _without_free(_with_adapter(captioner.options), captioner)
    return {
        "captioner.backend": captioner.backend,
        "captioner.model": _model(captioner.model),
        "captioner.options": options,
        "captioner.generation": captioner.generation.model_dump(),
        "captioner.frames": counted(asdict(captioner.frames)),
        **({"captioner.thinking": asdict(captioner.thinking)} if captioner.thinking != ThinkingSettings() else {}),
    }


def _revision(operator: VideoCaptioningFromVLMMapper) -> str | None:
    if operator.served_model not in (None, DEFAULT_MODEL):
        return operator.served_model
    return model_revision(operator.spec) if operator.spec is not None else None


def _versions(operator: VideoCaptioningFromVLMMapper) -> dict[str, str]:
    names = ["reelscribe", *(() if operator.spec is None else identity_packages(operator.spec))]
    return {name: number for name in names if (number := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _without_free(options: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Parameters of a model without those that do not affect captions."""
    free = backend_of(spec).free_options
    return {name: value for name, value in options.items() if name not in free}


def _parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values inside `model_params` and `sampling_params` under their own names, for messages."""
    return {f"{name}.{key}": part for name in WITH_PARTS for key, part in (values.get(name) or {}).items()}


def _told(name: str, before: Any, now: Any) -> str:
    if name == "input_files":
        return CHANGED_FILES
    return f"{name} was {_short(before)} and is now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values after a round trip through JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(values, sort_keys=True, default=str))
    return plain
