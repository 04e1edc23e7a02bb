"""Video models behind OpenAI-compatible servers: vLLM's, or any other that accepts pictures.

Frames are read here and sent to the server with their times, in the most exact form it supports (0016).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field

from ...errors import MissingExtraError, ModelError, SettingsError
from ...printable import logger
from ...types import CaptionRequest, CaptionResult, Clip, Failure, RequestId
from ...video.frames.moments import FramePolicy
from ..captioner import (
    DEFAULT_MODEL,
    SEEDS,
    SERVED_MODEL,
    ModelSpec,
    PromptOptions,
    ThinkingSettings,
    generation_config,
    needed_clip,
    read_options,
)
from ..chat import OTHER_POLICY, frame_arguments, has_exact_policy, policy_from_processor, resolve_model
from ..in_flight import MAX_BYTES_IN_FLIGHT, FlightCaptioner, InFlight
from ..loading import load_generation_defaults, load_processor, quiet_transformers
from ..names import BUNDLED_MODELS, hub_arguments, local_folder, plain_name, read_model_name, served_names
from ..thinking import Thinking, thinking_of
from .chat_answer import ChatAnswer, ServedModel
from .chat_api import PLAIN, ChatFormat, Dialect, Form, FrameFormat, parted_choice, result_of
from .http_client import SHOWN_CHARS, ChatClient, RefusedError, TroubleError
from .pool import ServerPool

START_SECONDS = 60.0
"""Once one of several servers is available at the start, how long the others have to become available too."""
SHOWN_MODELS = 10
"""Most models of a server that a message lists."""
PROBE_SIDE = 64
"""Height and width of the frames of a trial request, in pixels."""

log = logger(__name__)


class ServerOptions(PromptOptions):
    """Parameters of `model_params` for a server."""

    base_url: str | list[str] | tuple[str, ...]
    """Address of the server, such as `http://localhost:8000/v1`, or a list of several."""
    api_key_env: str | None = None
    """Environment variable that holds the key, for all servers; None: no key is sent."""
    processor: str | None = None
    """Model whose processor selects the frames to show; None: the served model, if its name identifies it."""
    video_form: Literal["auto", "video", "images"] = "auto"
    """How frames are sent: `video`, as for vLLM, `images`, or the best form that all servers accept."""
    frame_format: FrameFormat = "jpeg"
    """How frames are encoded: `jpeg` (quality 95), or `png`, lossless with several times the bytes."""
    max_in_flight: Annotated[int, Field(gt=0)] = 32
    """Videos at each server at once."""
    max_bytes_in_flight: Annotated[int, Field(gt=0)] = MAX_BYTES_IN_FLIGHT
    """Bytes of pixels on their way to the servers at once."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Time limit for one answer, from the connection to its last byte."""
    max_answer_bytes: Annotated[int, Field(gt=0)] = 1 << 24
    """Largest answer, decompressed."""
    max_tries: Annotated[int, Field(gt=0)] = 5
    """Failed tries after which a request is given up, if the servers answer others meanwhile."""
    give_up_seconds: Annotated[float, Field(gt=0)] = 900.0
    """Time without any answer from any server after which the run stops."""


class ServerCaptioner(FlightCaptioner):
    """A model behind one server, or several, as a captioner.

    >>> spec = ModelSpec("server", "Qwen/Qwen3-VL-8B-Instruct", {"base_url": "http://localhost:8000/v1"})
    >>> captioner = ServerCaptioner.from_spec(spec)  # doctest: +SKIP
    """

    advice: ClassVar[dict[str, str]] = {
        "model": "more replicas of the server (repeat --server), more videos in flight (--batch-size), fewer or "
        "smaller frames (--max-frames, --max-pixels), or shorter captions (--max-tokens)"
    }
    """What would speed up its stages."""

    def __init__(
        self,
        pool: ServerPool,
        *,
        format: ChatFormat,  # noqa: A002
        dialect: Dialect,
        policy: FramePolicy,
        flight: InFlight,
        notes: Iterable[str],
    ) -> None:
        self.policy: FramePolicy | None = policy
        """The model's frame policy."""
        self.model = format.model
        """The servers' name for the model."""
        self._notes = list(notes)
        self._pool = pool
        self._answer = partial(_answer, pool.ask, format, dialect, _Room(format.thinking.expected))
        self._flight = flight
        self._end = weakref.finalize(self, flight.close, pool.close)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> ServerCaptioner:
        """Find the servers, their model, and what they support.

        Raises:
            SettingsError: an unknown or unusable parameter.
            ModelError: no server answers, one does not serve the model, or accepts no frames in any form.
        """
        options = read_options(ServerOptions, spec.options)
        _check_fit(spec)
        addresses = base_urls(options.base_url)
        flight = InFlight(max_requests=options.max_in_flight * len(addresses), max_bytes=options.max_bytes_in_flight)
        try:
            return flight.run(_connect(spec, options, addresses, flight))
        except BaseException:
            flight.close()
            raise

    @property
    def notes(self) -> list[str]:
        """Notes for the summary of a run: how the videos were shown, and what each server did."""
        return [*self._notes, *self._pool.counts()]

    @property
    def batch_size(self) -> int:
        """Most videos at each server at once; may be set between streams."""
        return self._pool.max_held

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._pool.max_held = size
        self._flight.max_requests = size * len(self._pool.servers)

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Send clips as there is room, yield results as they come back."""
        return self._flight.stream(clips, self._answer)

    def close(self) -> None:
        """Close the connections."""
        self._end()


Ask = Callable[[bytes], Coroutine[Any, Any, ChatAnswer]]
"""Sends a request, and returns the answer."""


async def _answer(
    ask: Ask,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    room: _Room,
    request: CaptionRequest,
    clip: Clip | None,
) -> CaptionResult:
    clip = needed_clip(request, clip)
    try:
        return await _ask(ask, format, dialect, request, clip, room=room)
    except RefusedError as exc:
        return CaptionResult(request.id, failure=_failure_of(str(exc)))


@dataclass
class _Room:
    """Whether requests leave room for reasoning, as far as known by now."""

    wanted: bool = False
    """Whether the model reasons; set by the first answer that shows it."""
    takes_budget: bool | None = None
    """Whether the servers accept a budget for it (`thinking_token_budget`, as vLLM's do); None: unknown."""


async def _ask(
    ask: Ask,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    request: CaptionRequest,
    clip: Clip,
    *,
    room: _Room | None = None,
) -> CaptionResult:
    """The answer to a request, which is repeated if reasoning has taken the answer's room.

    Args:
        ask: sends one.
        format: how it is written.
        dialect: what the servers support.
        request: the request.
        clip: its clip.
        room: for reasoning; None: never any.
    """
    if room is None or not room.wanted:
        send = partial(_result, ask, format, dialect, request, clip, fields={})
        result, lacks_room = await send(room=False)
        if room is None or not lacks_room:
            return result
        room.wanted = True
    return await _ask_with_room(ask, format, dialect, request, clip, room=room)


async def _ask_with_room(
    ask: Ask,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    request: CaptionRequest,
    clip: Clip,
    *,
    room: _Room,
) -> CaptionResult:
    send = partial(_result, ask, format, dialect, request, clip, room=True)
    if room.takes_budget is not False:
        try:
            result, _ = await send(fields={"thinking_token_budget": format.thinking.settings.tokens})
            room.takes_budget = True
            return result
        except RefusedError:
            if room.takes_budget:
                raise
    result, _ = await send(fields={})
    room.takes_budget = False
    return result


async def _result(
    ask: Ask,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    request: CaptionRequest,
    clip: Clip,
    *,
    fields: Mapping[str, Any],
    room: bool,
) -> tuple[CaptionResult, bool]:
    """The result, and whether reasoning has taken the room of an answer.

    One request for all candidates, or one for each if the server does not support `n`; seeds are the same either way.
    """
    _, same = format.sampling(request.num_candidates)
    wanted = 1 if same else request.num_candidates
    several = dialect.several and wanted > 1
    counts = [wanted] if several else [1] * wanted
    seed = request.seed % SEEDS

    def pack() -> list[bytes]:
        body = {**format.body(request, clip, dialect, seed=seed, count=counts[0], room=room), **fields}
        return [json.dumps({**body, "seed": seed + index}).encode() for index in range(len(counts))]

    asked = [asyncio.ensure_future(ask(body)) for body in await asyncio.to_thread(pack)]
    try:
        answers = await asyncio.gather(*asked)
        reading = format.reading(room=room)
        result = result_of(request, answers, counts=counts, same=same, reading=reading)
        parted = [parted_choice(choice, reading) for answer in answers for choice in answer.choices]
        return result, any(
            one.reasoning is not None and (one.finish_reason == "length" or not one.text) for one in parted
        )
    finally:
        for one in asked:  # the rest, if one was refused
            one.cancel()


_TOO_LONG = ("context length", "context_length", "max_model_len", "maximum model length", "longer than the maximum")
"""Parts of servers' messages about a request that is too long for the model."""


def _failure_of(message: str) -> Failure:
    if any(part in message.lower() for part in _TOO_LONG):
        return Failure("too_many_tokens", f"{message}; show fewer or smaller frames (max_frames, max_pixels)")
    return Failure("server_error", message)


# discovering the servers


async def _connect(
    spec: ModelSpec, options: ServerOptions, addresses: Sequence[str], flight: InFlight
) -> ServerCaptioner:
    key = _key(options.api_key_env)
    limits: dict[str, Any] = {
        "timeout_seconds": options.timeout_seconds,
        "max_answer_bytes": options.max_answer_bytes,
    }
    pool = ServerPool(
        [ChatClient(address, key=key, **limits) for address in addresses],
        max_held=options.max_in_flight,
        max_tries=options.max_tries,
        give_up_seconds=options.give_up_seconds,
    )
    clients = [server.client for server in pool.servers]
    try:
        served = await _served_by(clients)
        model = _common_model(spec.model, served)
        root = next((found for client in served if (found := _root(model, served[client]))), None)
        processor, defaults = await asyncio.to_thread(_load_rules, model, options.processor, root)
        policy = (OTHER_POLICY if processor is None else policy_from_processor(processor)).override(spec.frames)
        thinking = Thinking(spec.thinking, None)
        if processor is not None:
            thinking = thinking_of(processor, options, spec.thinking, model=model)
        format = ChatFormat(  # noqa: A001
            model=model,
            options=thinking.options(options),
            thinking=thinking,
            generation=spec.generation,
            defaults=defaults,
            frame_format=options.frame_format,
            frame_arguments={"do_sample_frames": False} if processor is None else frame_arguments(processor),
        )
        dialects = await _dialects(list(served), format, options.video_form)
        dialect = await _common_dialect(dialects, format)
        if processor is None:
            thinking = await _served_thinking(next(iter(dialects)), format, dialect, spec.thinking)
            format = replace(format, thinking=thinking, options=thinking.options(options))  # noqa: A001
    except BaseException:
        await pool.close()
        raise
    absent = [client for client in clients if client not in dialects]
    pool.leave_out(absent, partial(_admit, format=format, dialect=dialect))
    exact = processor is not None and has_exact_policy(processor)
    notes = [_summary(addresses, dialect, options.frame_format, exact=exact)]
    if spec.model == SERVED_MODEL:
        notes.append(f"model {model!r}: the one that is served, since no --model was given")
    if format.thinking.note is not None:
        notes.append(format.thinking.note)
    for client in absent:
        log.warning("the server %s is not available yet, and is left out until it is", client.base_url)
    return ServerCaptioner(pool, format=format, dialect=dialect, policy=policy, flight=flight, notes=notes)


Served = dict[ChatClient, list[ServedModel] | None]
"""Server to the models that it lists; None: it has no list."""


async def _served_by(clients: Sequence[ChatClient]) -> Served:
    """The models of the servers that answer.

    Raises:
        ModelError: none answers, or one rejects the key.
    """
    seconds = None if len(clients) == 1 else START_SECONDS
    found = await asyncio.gather(*(client.models(seconds=seconds) for client in clients), return_exceptions=True)
    served: Served = {}
    trouble = []
    for client, one in zip(clients, found, strict=True):
        if isinstance(one, TroubleError | RefusedError):
            trouble.append(f"no answer from the server {client.base_url}: {one}")
        elif isinstance(one, BaseException):
            raise one
        else:
            served[client] = one
    if not served:
        raise ModelError("; ".join(trouble))
    return served


def _common_model(model: str, served: Served) -> str:
    """The model that all servers serve: the named one, or the only one.

    Raises:
        ModelError: one does not serve it, or they serve several, or different ones.
    """
    chosen = {client: _model_of(model, client, models) for client, models in served.items()}
    if len(set(chosen.values())) > 1:
        names = "; ".join(f"{client.base_url} serves {name!r}" for client, name in chosen.items())
        raise ModelError(f"the servers do not serve the same model: {names}; name one with --model, or leave some out")
    return next(iter(chosen.values()))


def _model_of(model: str, client: ChatClient, served: list[ServedModel] | None) -> str:
    names = [one.id for one in served or ()]
    if not names:
        return plain_name(model) or DEFAULT_MODEL
    known = [name for name in served_names(model) if name in names]
    if known and model != SERVED_MODEL:
        return known[0]
    if model == SERVED_MODEL and DEFAULT_MODEL in names:
        return DEFAULT_MODEL
    if model == SERVED_MODEL and len(set(names)) == 1:
        return names[0]
    shown = ", ".join(repr(name[:SHOWN_CHARS]) for name in names[:SHOWN_MODELS]) + (
        ", …" if names[SHOWN_MODELS:] else ""
    )
    if model == SERVED_MODEL:
        raise ModelError(f"the server {client.base_url} serves several models: {shown}; name one with --model")
    raise ModelError(f"the server {client.base_url} does not serve {model!r}; it serves {shown}")


def _root(model: str, served: list[ServedModel] | None) -> str | None:
    """What a server loaded the model from, if it reports that."""
    return next((one.root for one in served or () if one.id == model and one.root), None)


async def _dialects(
    clients: Sequence[ChatClient],
    format: ChatFormat,  # noqa: A002
    wanted: str,
) -> dict[ChatClient, Dialect]:
    """What each available server supports; once one is available, the others have a while to become so.

    Raises:
        ModelError: one accepts no frames in the requested forms, or none is available.
    """
    tasks = {asyncio.ensure_future(find_dialect(client, format, wanted)): client for client in clients}
    try:
        waiting, end = set(tasks), None
        while waiting and (end is None or time.monotonic() < end):
            left = None if end is None else end - time.monotonic()
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if end is None and any(task.exception() is None for task in done):
                end = time.monotonic() + START_SECONDS
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    failed = [exc for task in tasks if not task.cancelled() and (exc := task.exception()) is not None]
    found = {client: task.result() for task, client in tasks.items() if not task.cancelled() and not task.exception()}
    for exc in failed:
        if not found or not isinstance(exc, AbsentError):
            raise exc
    return found


async def _common_dialect(dialects: Mapping[ChatClient, Dialect], format: ChatFormat) -> Dialect:  # noqa: A002
    """The most that all servers support.

    Raises:
        ModelError: one does not accept the others' common form.
    """
    told = dialects.values()
    common = Dialect(
        form="images" if any(one.form == "images" for one in told) else "video",
        several=all(one.several for one in told),
        logprobs=all(one.logprobs for one in told),
    )
    for client, own in dialects.items():
        if own != common and (refusal := await _refusal(client, format, common)):
            raise ModelError(
                f"the servers accept frames in different forms, and {client.base_url} does not accept that of "
                f"the others ({common.form}): {refusal}"
            )
    return common


async def _admit(client: ChatClient, *, format: ChatFormat, dialect: Dialect) -> None:  # noqa: A002
    """Check that a server that was not available at the start serves the model and accepts the frames as the others do.

    Raises:
        ModelError: it does not.
        TroubleError: it is not available yet.
    """
    _model_of(format.model, client, await client.models())
    if refusal := await _refusal(client, format, dialect):
        raise ModelError(f"it does not accept frames in the form of the other servers: {refusal}")


class AbsentError(ModelError):
    """A server fails on everything, as one that is not available yet."""


async def find_dialect(client: ChatClient, format: ChatFormat, wanted: str) -> Dialect:  # noqa: A002
    """The most that the server supports, found with trial requests of two small frames and one token.

    Raises:
        ModelError: it refuses even the simplest.
    """
    forms: tuple[Form, ...] = ("video", "images") if wanted == "auto" else (wanted,)  # type: ignore[assignment]
    refusal, kind = "", AbsentError
    for form, several, logprobs in product(forms, (True, False), (True, False)):
        dialect = Dialect(form, several, logprobs)
        try:
            refusal = await _refusal(client, format, dialect)
            kind = ModelError  # type: ignore[assignment]
        except TroubleError as exc:
            refusal = str(exc)
        if not refusal:
            return dialect
    raise kind(f"the server {client.base_url} does not accept frames {_in_form(wanted)}: {refusal}")


async def _refusal(client: ChatClient, format: ChatFormat, dialect: Dialect) -> str:  # noqa: A002
    """A server's refusal of a trial request; empty if it accepts it.

    Raises:
        TroubleError: it fails on it repeatedly.
    """
    request = replace(_TRIAL, num_candidates=2 if dialect.several else 1)
    try:
        result = await _ask(client.ask_impatiently, _trial_format(format), dialect, request, _probe_clip())
    except RefusedError as exc:
        return str(exc)
    return "" if result.failure is None else result.failure.message


SWITCHES = ("enable_thinking", "thinking")
"""Chat template variables that may switch reasoning, for a model whose template is unknown."""


async def _served_thinking(
    client: ChatClient,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    settings: ThinkingSettings,
) -> Thinking:
    """What a server reveals about its model's reasoning: whether a switch changes the prompt's tokens, and whether the
    answer to a trial request is reasoning."""
    unknown = Thinking(settings, None)
    if not format.options.chat_template_kwargs.keys().isdisjoint(SWITCHES):
        return unknown
    plain = await _trial_answer(client, format, dialect, {})
    if plain is None:
        return unknown
    taken = []
    for name in SWITCHES:
        switched = await _trial_answer(client, format, dialect, {name: settings.on})
        if switched is None:
            continue
        if _is_switched(plain, switched, on=settings.on):
            return replace(unknown, variables={name: settings.on})
        taken.append(name)
    return replace(unknown, variables={taken[0]: True}) if settings.on and taken else unknown


def _is_switched(plain: ChatAnswer, switched: ChatAnswer, *, on: bool) -> bool:
    """Whether a variable has changed the prompt, or whether the model reasons."""
    told = plain.usage.prompt_tokens, switched.usage.prompt_tokens
    return (all(told) and told[0] != told[1]) or _reasons(switched) is on is not _reasons(plain)


def _reasons(answer: ChatAnswer) -> bool:
    return any(parted_choice(choice, PLAIN).reasoning is not None for choice in answer.choices)


async def _trial_answer(
    client: ChatClient,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    variables: Mapping[str, Any],
) -> ChatAnswer | None:
    """The answer to a trial request with these variables for the template; None: the server refuses it."""
    options = format.options.model_copy(
        update={"chat_template_kwargs": {**format.options.chat_template_kwargs, **variables}}
    )
    trial = replace(_trial_format(format), options=options)
    body = trial.body(_TRIAL, _probe_clip(), dialect, seed=0, count=1)
    try:
        return await client.ask_impatiently(json.dumps(body).encode())
    except (RefusedError, TroubleError):
        return None


_TRIAL = CaptionRequest(RequestId(0, 0), "", "Say yes.")


def _trial_format(format: ChatFormat) -> ChatFormat:  # noqa: A002
    return replace(format, generation=generation_config({"max_tokens": 1, "temperature": 1.0}), defaults=None)


def _in_form(wanted: str) -> str:
    if wanted == "video":
        return "as a video with their times (vLLM's must be started with --trust-request-mm-kwargs)"
    return "as images" if wanted == "images" else "as a video or as images"


def _probe_clip() -> Clip:
    frames = np.zeros((2, PROBE_SIDE, PROBE_SIDE, 3), np.uint8)
    side = PROBE_SIDE
    return Clip(frames, np.array([0.0, 0.5]), duration_seconds=1, source_fps=2, source_height=side, source_width=side)


def _load_rules(model: str, processor: str | None, root: str | None) -> tuple[Any, dict[str, Any] | None]:
    """The model's processor and generation config, or None for each that is not available.

    Raises:
        ModelError: `processor` is given and cannot be loaded.
        MissingExtraError: it is given, and transformers is not installed.
    """
    for name in dict.fromkeys([processor] if processor else [model, root]):
        if name is None or not (processor or _can_be_loaded(name)):
            continue
        try:
            meant = read_model_name(name)
            folder, hub = resolve_model(meant.name), hub_arguments(meant, {})
            with quiet_transformers():
                return load_processor(folder, hub), load_generation_defaults(folder, hub)
        except MissingExtraError:
            if processor:
                raise
            log.warning(
                "%r gets frames by a general rule, as transformers is not installed (pip install 'reelscribe[hf]'): "
                "%g a second, %d at most, unless --fps, --num-frames or --max-frames say otherwise",
                name,
                OTHER_POLICY.fps,
                OTHER_POLICY.max_frames,
            )
            return None, None
        except Exception as exc:  # not on the hub, no network, a processor without videos: the general rule is used
            if processor:
                raise ModelError(f"the processor {name!r} cannot be loaded: {exc}") from exc
    return None, None


def _can_be_loaded(name: str) -> bool:
    """Whether a served name may be a model's: a bundled one, a folder, or `owner/name` on the hub."""
    is_path = name in BUNDLED_MODELS or local_folder(name) is not None
    return is_path or (name.count("/") == 1 and not name.startswith(("/", ".")))


def _summary(urls: Sequence[str], dialect: Dialect, frame_format: FrameFormat, *, exact: bool) -> str:
    form = {
        "video": f"as one video of {frame_format.upper()} frames with their exact times (video_url)",
        "images": f"as {frame_format.upper()} images, each after its time (image_url; vLLM takes them as one exact "
        "video when it is started with --trust-request-mm-kwargs)",
    }[dialect.form]
    rule = (
        "chosen by the model's own rule" if exact else "chosen by a general rule (model_params processor names a model)"
    )
    candidates = "all candidates in one request" if dialect.several else "a request for each candidate"
    who = f"server {urls[0]}" if len(urls) == 1 else f"{len(urls)} servers"
    return f"{who}: frames {rule}, sent {form}; {candidates}"


# settings


def _check_fit(spec: ModelSpec) -> None:
    if spec.frames.fit:
        raise SettingsError(
            "fit (--fit) depends on the model's context, which servers do not report: leave it out, and show fewer "
            "frames (max_frames)"
        )


def base_urls(given: str | Sequence[str]) -> list[str]:
    """The addresses, each once.

    Raises:
        SettingsError: there are none, or one is not usable.
    """
    addresses = list(dict.fromkeys(base_url(one) for one in ([given] if isinstance(given, str) else given)))
    if not addresses:
        raise SettingsError("base_url must name a server, or several; got an empty list")
    return addresses


def base_url(text: str) -> str:
    """The base address of requests; `/v1` is added if it has no path.

    Raises:
        SettingsError: it is not an http address, or contains a password.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"base_url must be an address like http://localhost:8000/v1; got {_unsecret(text)!r}")
    if parts.username is not None or parts.password is not None:
        raise SettingsError("base_url must not hold a user or a password; put the key in an environment variable and "
        "name it in api_key_env")  # fmt: skip
    if parts.query or parts.fragment:
        raise SettingsError(f"base_url must end with its path, without ? or #; got {_unsecret(text)!r}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _unsecret(text: str) -> str:
    """An address without possible secrets: everything before an @, and after a question mark."""
    return re.sub(r"[?#].*", "?…", re.sub(r"[^/]*@", "…@", text))


def _key(name: str | None) -> str | None:
    """The key from the environment.

    Raises:
        SettingsError: the variable is not set.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"the variable {name!r} holds no key: a key consists of printable ASCII characters only")
    if not key:
        raise SettingsError(
            f"api_key_env names {name!r}, but that variable is not set; set it, or leave api_key_env out"
        )
    return key
