"""What every captioner has in common: the protocol, the spec that becomes one, and the generation settings.

Knows no library that runs models.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import SettingsError
from ..types import CaptionRequest, CaptionResult, Clip
from ..video.frames.moments import FramePolicy, FrameSettings

DEFAULT_MODEL = "Qwen/Qwen3-VL-8B-Instruct"
SERVED_MODEL = ""
"""Placeholder for the one model that a server serves, or for the default one if it serves that."""
DEFAULT_MAX_TOKENS = 512
DEFAULT_THINKING_TOKENS = 2048
SAMPLED_TEMPERATURE = 0.9
"""Default temperature for several candidates: choosing needs variety."""
SAMPLED_TOP_P = 0.95
ALL_BUT_GREEDY = 0.01
"""A model's own temperature at or below this counts as 0."""
LONGEST_MESSAGE = 300
"""Characters kept of an exception's text; some carry whole pixel arrays."""

SEEDS = 2**62
"""Seeds for engines and servers are below this: they count up by one per candidate, as signed 64-bit integers."""

PromptOrder = Literal["video_first", "text_first"]


class GenerationConfig(BaseModel):
    """Generation settings in one vocabulary for every back end; None leaves the model's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    max_tokens: Annotated[int, Field(gt=0)] = DEFAULT_MAX_TOKENS
    """Longest caption, in tokens; reasoning before it does not count."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Softmax temperature; 0 is greedy."""
    do_sample: bool | None = None
    """Whether to sample if `temperature` is not set; true uses the model's own temperature, or 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling: the smallest set of tokens whose probabilities reach this sum."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Only the k most likely tokens; 0 and -1 switch it off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    """Divides the scores of tokens already in the prompt or the text; 1 is off."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Subtracted from the score of every token already generated; 0 is off."""
    stop: tuple[str, ...] = ()
    """Strings that end the caption; they are not part of it."""
    seed: int | None = None
    """Overrides the operator's `seed`."""


HF_NAMES = {"max_new_tokens": "max_tokens", "stop_strings": "stop"}
"""Names in transformers to ours."""
ELSEWHERE = {
    "n": "use caption_num",
    "num_return_sequences": "use caption_num",
    "num_beams": "beam search is not supported",
}
"""Names that `sampling_params` does not accept, and why."""


def generation_config(params: Mapping[str, Any] | None) -> GenerationConfig:
    """Read `sampling_params` as users write them, with this project's names or Hugging Face's.

    Raises:
        SettingsError: an unknown name (the message lists close matches), a value out of range, or two names of one
            setting that disagree.
    """
    values: dict[str, Any] = {}
    for name, value in (params or {}).items():
        key = _canonical(name)
        if key == "stop":
            value = (
                (value,)
                if isinstance(value, str)
                else tuple(value)
                if isinstance(value, (list, tuple))
                else value or ()
            )
        if key in values and values[key] != value:
            raise SettingsError(f"sampling_params sets {key!r} twice with different values: {values[key]!r}, {value!r}")
        values[key] = value
    try:
        return GenerationConfig(**_agreeing(values))
    except ValidationError as exc:
        raise SettingsError(f"sampling_params: {_first_error(exc)}") from exc


def _canonical(name: str) -> str:
    if name in ELSEWHERE:
        raise SettingsError(f"sampling_params does not accept {name!r}: {ELSEWHERE[name]}")
    key = HF_NAMES.get(name, name)
    known = [*GenerationConfig.model_fields, *HF_NAMES]
    if key not in known:
        hint = close_matches(name, known, otherwise=f"choose from {', '.join(known)}")
        raise SettingsError(f"sampling_params has no setting {name!r}; {hint}")
    return key


def _agreeing(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with `do_sample: false` expressed as temperature 0."""
    do_sample, temperature = values.get("do_sample"), values.get("temperature")
    if do_sample is True and temperature == 0:
        raise SettingsError("sampling_params: do_sample=true needs a temperature above 0; got 0")
    if do_sample is False and temperature:
        raise SettingsError(f"sampling_params: do_sample=false is greedy, but temperature is {temperature}")
    return {**values, "temperature": 0.0} if do_sample is False else values


class PromptOptions(BaseModel):
    """Parameters of `model_params` that every model accepts; back ends add their own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt_order: PromptOrder = "video_first"
    """Which comes first in the user's turn: `video_first` or `text_first`."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables for the chat template, e.g. `{"enable_thinking": False}`."""


Options = TypeVar("Options", bound=PromptOptions)


def read_options(kind: type[Options], params: Mapping[str, Any]) -> Options:
    """A back end's own part of `model_params`.

    Raises:
        SettingsError: a value that cannot work.
    """
    try:
        return kind(**{name: value for name, value in params.items() if name in kind.model_fields})
    except ValidationError as exc:
        raise SettingsError(f"model_params: {_first_error(exc)}") from exc


def close_matches(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """The end of a message about an unknown name: similar known names, or `otherwise`."""
    close = difflib.get_close_matches(name, list(known), n=2)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def short_message(exc: BaseException) -> str:
    """An exception in one line of at most `LONGEST_MESSAGE` characters, its type first."""
    message = " ".join(str(exc)[: 4 * LONGEST_MESSAGE].split())
    return f"{type(exc).__name__}: {message}"[:LONGEST_MESSAGE]


def _first_error(exc: ValidationError) -> str:
    error = exc.errors()[0]
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}; got {error['input']!r}"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Complete generation settings, ready for a back end."""

    max_tokens: int
    """Longest caption, in tokens."""
    temperature: float
    """0 is greedy."""
    top_p: float
    """1 is off."""
    top_k: int
    """0 is off."""
    min_p: float
    """0 is off."""
    repetition_penalty: float
    """1 is off."""
    presence_penalty: float
    """0 is off."""
    stop: tuple[str, ...]
    """Strings that end the caption."""

    @property
    def greedy(self) -> bool:
        """Whether every candidate is the most likely continuation."""
        return self.temperature == 0


def resolve_sampling(
    config: GenerationConfig, *, num_candidates: int, model_defaults: Mapping[str, Any] | None = None
) -> Sampling:
    """Fill in unset values from the model's own generation config.

    With one candidate the model's defaults apply, whatever they are. With several and a model that decodes greedily by
    default, nominally or effectively, sampling is enabled so that candidates differ.

    Args:
        config: the user's settings.
        num_candidates: M.
        model_defaults: the model's `generation_config` as plain values (`do_sample`, `temperature`, …).
    """
    own = dict(model_defaults or {})
    samples = _samples(own) or bool(config.do_sample)

    def pick(name: str, off: float) -> Any:
        given = getattr(config, name)
        if given is not None:
            return given
        value = own.get(name)
        return off if value is None else value

    temperature = config.temperature
    top_p = pick("top_p", 1.0) if samples else (config.top_p if config.top_p is not None else 1.0)
    if temperature is None:
        temperature = _own_temperature(own) if samples else 0.0
        if not samples and num_candidates > 1:
            temperature = SAMPLED_TEMPERATURE
            top_p = config.top_p if config.top_p is not None else SAMPLED_TOP_P
    return Sampling(
        max_tokens=config.max_tokens,
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=max(0, int(pick("top_k", 0))) if samples or config.top_k is not None else 0,
        min_p=float(pick("min_p", 0.0)),
        repetition_penalty=float(pick("repetition_penalty", 1.0)),
        presence_penalty=float(pick("presence_penalty", 0.0)),
        stop=config.stop,
    )


def _samples(own: Mapping[str, Any]) -> bool:
    """Whether a generation config really samples: Qwen2.5-VL's has `do_sample` with temperature 1e-6 and `top_k` 1."""
    temperature = own.get("temperature")
    drawn = own.get("top_k") != 1 and (temperature is None or temperature > ALL_BUT_GREEDY)
    return drawn and bool(own.get("do_sample", False))


def _own_temperature(own: Mapping[str, Any]) -> float:
    temperature = own.get("temperature")
    return float(temperature) if temperature is not None and temperature > ALL_BUT_GREEDY else 1.0


@dataclass(frozen=True, slots=True)
class ThinkingSettings:
    """The user's settings for reasoning before the answer."""

    on: bool = False
    """Whether a model with a switch for it reasons; one without a switch reasons in any case."""
    tokens: int = DEFAULT_THINKING_TOKENS
    """Longest reasoning, in tokens; then it is ended and the answer follows."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Plain values from which a captioner is built, here or in another process."""

    backend: str
    """A key of `BACKENDS`: `hf`, `vllm`, `server`, `scripted`, or one that a package brings."""
    model: str
    """Model name on the hub, local folder, or served name; `reelscribe/shapes` is the bundled demonstration model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Back end parameters (`model_params`)."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Generation settings."""
    frames: FrameSettings = field(default_factory=FrameSettings)
    """The user's changes to the model's frame policy."""
    thinking: ThinkingSettings = field(default_factory=ThinkingSettings)
    """The user's settings for reasoning."""


@runtime_checkable
class Captioner(Protocol):
    """A model that turns a stream of clips into a stream of results."""

    @property
    def policy(self) -> FramePolicy | None:
        """The model's frame policy; None: no clips at all."""

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Pull requests as there is room, yield one result each as they finish, in any order.

        A failed video is a result with a `Failure`; an exception means a bug or a broken set-up.
        """

    def close(self) -> None:
        """Free the model; the captioner must not be used afterwards."""


def needed_clip(request: CaptionRequest, clip: Clip | None) -> Clip:
    """The clip of a request, for captioners that require frames.

    Raises:
        TypeError: it has none; the caller ignored the captioner's policy.
    """
    if clip is None:
        raise TypeError(f"request {request.id} has no clip; this captioner requires frames")
    return clip


# Optional members of a captioner, each a separate protocol, so that one given from Python needs none.


@runtime_checkable
class Noted(Protocol):
    """A captioner with notes for the summary of a run."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences."""


@runtime_checkable
class Timed(Protocol):
    """A captioner that knows how long its stages were busy."""

    @property
    def busy_seconds(self) -> Mapping[str, float]:
        """Stage (`prepare`, `model`) to its seconds so far."""


@runtime_checkable
class Advised(Protocol):
    """A captioner with advice for speeding up its stages."""

    @property
    def advice(self) -> Mapping[str, str]:
        """Stage to what to change, in a phrase."""


@runtime_checkable
class Named(Protocol):
    """A captioner that determined its model itself."""

    @property
    def model(self) -> str:
        """The model's name."""


@runtime_checkable
class Sized(Protocol):
    """A captioner that works on several videos at once."""

    batch_size: int
    """Most of them; may be set between streams."""


@runtime_checkable
class Preparing(Protocol):
    """A captioner that can prepare videos separately from running its model."""

    def prepare(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[Any]:
        """Prepare them, and do no more."""


@runtime_checkable
class OnCores(Sized, Protocol):
    """A captioner whose model may run on the cores that read videos."""

    @property
    def cores(self) -> int:
        """Cores that the model computes on; 0: none."""

    def videos_at_once(self, clips: Sequence[tuple[CaptionRequest, Clip]]) -> int:
        """How many of these leave for the model together."""


def captioner_notes(captioner: Captioner) -> list[str]:
    """A captioner's notes for the summary of a run."""
    return list(captioner.notes) if isinstance(captioner, Noted) else []


def captioner_advice(captioner: Captioner) -> dict[str, str]:
    """A captioner's advice for speeding up its stages."""
    return dict(captioner.advice) if isinstance(captioner, Advised) else {}


def captioner_seconds(captioner: Captioner) -> dict[str, float]:
    """How long a captioner's stages have been busy so far."""
    return dict(captioner.busy_seconds) if isinstance(captioner, Timed) else {}
