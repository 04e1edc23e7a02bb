"""Video models behind an OpenAI-compatible server: vLLM's, or any other that takes pictures.

The frames that are read here go to the server with their times, in the most exact form it understands.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field

from ..errors import ModelError, SettingsError
from ..record import CaptionRequest, CaptionResult, Clip, Failure, RequestId
from ..video.sampling import FramePolicy
from .base import SEEDS, ModelSpec, PromptOptions, close_matches, generation_config, needed_clip, read_options
from .chat_api import ChatFormat, Dialect, Form, FrameFormat, result_of
from .http_client import ChatClient, RefusedError
from .inflight import MAX_BYTES_IN_FLIGHT, FlightCaptioner, InFlight
from .loading import load_generation_defaults, load_processor, quiet_transformers
from .prompting import (
    BUNDLED_MODELS,
    OTHER_POLICY,
    frame_arguments,
    has_exact_policy,
    policy_from_processor,
    resolve_model,
)

PROBE_SIDE = 64
"""Height and width of the frames of a trial request, in pixels."""


class ServerOptions(PromptOptions):
    """Parameters of `model_params` for a server."""

    base_url: str
    """Address of the server, such as `http://localhost:8000/v1`."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None: no key is sent."""
    processor: str | None = None
    """Model whose processor says which frames to show; None: the served model, where it can be told from its name."""
    video_form: Literal["auto", "video", "images"] = "auto"
    """How frames are sent: `video`, as vLLM takes them, `images`, or the best that the server takes."""
    frame_format: FrameFormat = "jpeg"
    """How frames are packed: `jpeg` (quality 95), or `png`, without loss and several times the bytes."""
    max_in_flight: Annotated[int, Field(gt=0)] = 32
    """Videos at the server at once."""
    max_bytes_in_flight: Annotated[int, Field(gt=0)] = MAX_BYTES_IN_FLIGHT
    """Bytes of pixels on their way to the server at once."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long one answer may take."""
    max_tries: Annotated[int, Field(gt=0)] = 5
    """Failed answers to one request after which it is given up, if the server answers others meanwhile."""
    give_up_seconds: Annotated[float, Field(gt=0)] = 900.0
    """How long the server may answer nobody before the run stops."""


class ServerCaptioner(FlightCaptioner):
    """A model behind a server as a captioner.

    >>> spec = ModelSpec("server", "Qwen/Qwen3-VL-8B-Instruct", {"base_url": "http://localhost:8000/v1"})
    >>> captioner = ServerCaptioner.from_spec(spec)  # doctest: +SKIP
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        format: ChatFormat,  # noqa: A002
        dialect: Dialect,
        policy: FramePolicy,
        flight: InFlight,
        notes: Iterable[str],
    ) -> None:
        self.policy: FramePolicy | None = policy
        """Moments and sizes the model wants."""
        self.notes = list(notes)
        """What the summary of a run says about this captioner."""
        self._answer = partial(_answer, client, format, dialect)
        self._flight = flight
        self._end = weakref.finalize(self, flight.close, client.close)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> ServerCaptioner:
        """Find the server, its model, and what it understands.

        Raises:
            SettingsError: for an unknown or unusable parameter.
            ModelError: no server answers, it does not serve the model, or it takes no frames in any form.
        """
        options = _options(spec.options)
        flight = InFlight(max_requests=options.max_in_flight, max_bytes=options.max_bytes_in_flight)
        try:
            return flight.run(_connect(spec, options, flight))
        except BaseException:
            flight.close()
            raise

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Send clips as there is room, yield results as they come back."""
        return self._flight.stream(clips, self._answer)

    def close(self) -> None:
        """Close the connections."""
        self._end()


async def _answer(
    client: ChatClient,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    request: CaptionRequest,
    clip: Clip | None,
) -> CaptionResult:
    clip = needed_clip(request, clip)
    try:
        return await _ask(client, format, dialect, request, clip)
    except RefusedError as exc:
        return CaptionResult(request.id, failure=_failure_of(str(exc)))


async def _ask(
    client: ChatClient,
    format: ChatFormat,  # noqa: A002
    dialect: Dialect,
    request: CaptionRequest,
    clip: Clip,
    *,
    patient: bool = True,
) -> CaptionResult:
    """One request for all candidates, or one for each where the server takes no `n`; seeds are the same either way."""
    _, same = format.sampling(request.num_candidates)
    wanted = 1 if same else request.num_candidates
    several = dialect.several and wanted > 1
    counts = [wanted] if several else [1] * wanted
    seed = request.seed % SEEDS

    def pack() -> list[bytes]:
        body = format.body(request, clip, dialect, seed=seed, count=counts[0])
        return [json.dumps({**body, "seed": seed + index}).encode() for index in range(len(counts))]

    asked = [asyncio.ensure_future(client.ask(body, patient=patient)) for body in await asyncio.to_thread(pack)]
    try:
        return result_of(request, await asyncio.gather(*asked), same=same)
    finally:
        for one in asked:  # what is left where one was refused
            one.cancel()


_TOO_LONG = ("context length", "context_length", "max_model_len", "maximum model length", "longer than the maximum")
"""Parts of servers' messages about a request that is too long for the model."""


def _failure_of(message: str) -> Failure:
    if any(part in message.lower() for part in _TOO_LONG):
        return Failure("too_many_tokens", f"{message}; show fewer or smaller frames (max_frames, max_pixels)")
    return Failure("server_error", message)


# finding out what the server is


async def _connect(spec: ModelSpec, options: ServerOptions, flight: InFlight) -> ServerCaptioner:
    client = ChatClient(
        base_url(options.base_url),
        key=_key(options.api_key_env),
        max_connections=options.max_in_flight,
        timeout_seconds=options.timeout_seconds,
        max_tries=options.max_tries,
        give_up_seconds=options.give_up_seconds,
    )
    try:
        served = await client.models()
        root = _check_served(spec.model, served, client.base_url)
        processor, defaults = await asyncio.to_thread(_load_rules, spec.model, options.processor, root)
        policy = (OTHER_POLICY if processor is None else policy_from_processor(processor)).override(spec.frames)
        format = ChatFormat(  # noqa: A001
            model=spec.model,
            options=options,
            generation=spec.generation,
            defaults=defaults,
            frame_format=options.frame_format,
            frame_arguments={"do_sample_frames": False} if processor is None else frame_arguments(processor),
        )
        dialect = await find_dialect(client, format, options.video_form)
    except BaseException:
        await client.close()
        raise
    exact = processor is not None and has_exact_policy(processor)
    notes = [_summary(client.base_url, dialect, options.frame_format, exact=exact)]
    return ServerCaptioner(client, format=format, dialect=dialect, policy=policy, flight=flight, notes=notes)


async def find_dialect(client: ChatClient, format: ChatFormat, wanted: str) -> Dialect:  # noqa: A002
    """The most that the server understands, found with trial requests of two small frames and one token.

    Raises:
        ModelError: it refuses the least, too.
    """
    trial = ChatFormat(
        model=format.model,
        options=format.options,
        generation=generation_config({"max_tokens": 1, "temperature": 1.0}),
        defaults=None,
        frame_format=format.frame_format,
        frame_arguments=format.frame_arguments,
    )
    clip = _probe_clip()
    forms: tuple[Form, ...] = ("video", "images") if wanted == "auto" else (wanted,)  # type: ignore[assignment]
    refusal = ""
    for form, several, logprobs in product(forms, (True, False), (True, False)):
        dialect = Dialect(form, several, logprobs)
        request = CaptionRequest(RequestId(0, 0), "", "Say yes.", num_candidates=2 if several else 1)
        try:
            result = await _ask(client, trial, dialect, request, clip, patient=False)
        except RefusedError as exc:
            refusal = str(exc)
            continue
        if result.failure is None:
            return dialect
        refusal = result.failure.message
    raise ModelError(f"the server {client.base_url} takes no frames {_in_form(wanted)}: {refusal}")


def _in_form(wanted: str) -> str:
    if wanted == "video":
        return "as a video with their times (vLLM's must be started with --trust-request-mm-kwargs)"
    return "as images" if wanted == "images" else "as a video or as images"


def _probe_clip() -> Clip:
    frames = np.zeros((2, PROBE_SIDE, PROBE_SIDE, 3), np.uint8)
    side = PROBE_SIDE
    return Clip(frames, np.array([0.0, 0.5]), duration_seconds=1, source_fps=2, source_height=side, source_width=side)


def _check_served(model: str, served: list[dict[str, Any]] | None, url: str) -> str | None:
    """What the server loaded the model from, where it says so.

    Raises:
        ModelError: it serves other models only.
    """
    by_name = {str(one.get("id")): one for one in served or [] if isinstance(one, Mapping)}
    if by_name and model not in by_name:
        raise ModelError(f"the server {url} does not serve {model!r}; it serves {', '.join(map(repr, by_name))}")
    root = by_name.get(model, {}).get("root")
    return root if isinstance(root, str) else None


def _load_rules(model: str, processor: str | None, root: str | None) -> tuple[Any, dict[str, Any] | None]:
    """The model's processor and generation config, or None for each where they cannot be had.

    Raises:
        ModelError: `processor` is given and cannot be loaded.
    """
    for name in dict.fromkeys([processor] if processor else [model, root]):
        if name is None or not (processor or _can_be_loaded(name)):
            continue
        try:
            folder = resolve_model(name)
            with quiet_transformers():
                return load_processor(folder, {}), load_generation_defaults(folder, {})
        except Exception as exc:  # not on the hub, no network, a processor without videos: the general rule will do
            if processor:
                raise ModelError(f"the processor {name!r} cannot be loaded: {exc}") from exc
    return None, None


def _can_be_loaded(name: str) -> bool:
    """Whether a served name may be a model's: a bundled one, a folder, or `owner/name` on the hub."""
    return name in BUNDLED_MODELS or os.path.isdir(name) or (name.count("/") == 1 and not name.startswith(("/", ".")))  # noqa: PTH112


def _summary(url: str, dialect: Dialect, frame_format: FrameFormat, *, exact: bool) -> str:
    form = {
        "video": f"as one video of {frame_format.upper()} frames with their exact times (video_url)",
        "images": f"as {frame_format.upper()} images, each behind its time (image_url; vLLM takes them as one exact "
        "video when it is started with --trust-request-mm-kwargs)",
    }[dialect.form]
    rule = (
        "chosen by the model's own rule" if exact else "chosen by a general rule (model_params processor names a model)"
    )
    candidates = "all candidates in one request" if dialect.several else "a request for each candidate"
    return f"server {url}: frames {rule}, sent {form}; {candidates}"


# settings


def _options(params: Mapping[str, Any]) -> ServerOptions:
    known = list(ServerOptions.model_fields)
    for name in params:
        if name == "device":
            raise SettingsError(
                "accelerator (--device) says where this process runs a model; a server chooses by itself: leave it out"
            )
        if name not in known:
            hint = close_matches(name, known, otherwise=f"there are {', '.join(known)}")
            raise SettingsError(f"model_params does not know {name!r} beside base_url; {hint}")
    return read_options(ServerOptions, params)


def base_url(text: str) -> str:
    """The address requests go below; `/v1` is added where it has no path.

    Raises:
        SettingsError: it is no http address, or holds a password.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"base_url must be an address like http://localhost:8000/v1; got {_unsecret(text)!r}")
    if parts.username is not None or parts.password is not None:
        raise SettingsError("base_url must not hold a user or a password; put the key in a variable and name it in "
                            "api_key_env")  # fmt: skip
    if parts.query or parts.fragment:
        raise SettingsError(f"base_url must end with its path; got {_unsecret(text)!r}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _unsecret(text: str) -> str:
    """An address without what may be a secret in it: what stands before an @, and behind a question mark."""
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
        raise SettingsError(f"the variable {name!r} holds no key: a key has printable ASCII characters alone")
    if not key:
        raise SettingsError(
            f"api_key_env names {name!r}, but that variable is not set; set it, or leave api_key_env out"
        )
    return key
