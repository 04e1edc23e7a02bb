"""Video models run by vLLM's engine, started by this process.

One asynchronous engine lives as long as the captioner: requests enter as clips arrive, results leave as they finish.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import count
from typing import Annotated, Any

from pydantic import Field

from ..errors import MissingExtraError, ModelError, SettingsError
from ..record import Candidate, CaptionRequest, CaptionResult, Clip, Failure, Usage
from ..video.sampling import FramePolicy, frame_metadata
from ..video.workers import usable_processors
from .base import (
    SEEDS,
    GenerationConfig,
    ModelSpec,
    PromptOptions,
    Sampling,
    needed_clip,
    read_options,
    resolve_sampling,
    short_message,
)
from .engine_arguments import EngineSetting, engine_arguments
from .inflight import MAX_BYTES_IN_FLIGHT, FlightCaptioner, InFlight
from .loading import load_config, load_generation_defaults, load_processor, loading_errors, quiet_transformers
from .prompting import (
    frame_arguments,
    has_exact_policy,
    policy_from_processor,
    render_prompt,
    resolve_model,
    wants_special_tokens,
)
from .reviving import EngineDiedError, RevivingEngine, unless_dead
from .thinking import Budgets, thinking_of
from .written import Thought, candidate_of, parted

REQUESTS_PER_ENGINE = 64
"""Requests in flight for each engine: with four candidates they fill its 256 sequences."""
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""Environment of the engine unless the user's own says otherwise: errors only, no usage reports to anybody, and no fork
of a process that has threads."""

ENGINE_PROCESS = "EngineCore"
"""What vLLM's names of the processes of engines begin with."""
END_SECONDS, END_LOOK_SECONDS = 10.0, 0.05
"""How long the end of an engine's process is waited for, and how often it is looked for."""

HUB_ARGUMENTS = {
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "hf_token": "token",
    "download_dir": "cache_dir",
}
"""Arguments of the engine that say which files to read, and their names in transformers."""


class VLLMOptions(PromptOptions):
    """Parameters of `model_params` that are ours; every other goes to vLLM's `AsyncEngineArgs`."""

    device: str | None = None
    """`cpu` or `cuda`, as a check: which it is depends on the vLLM that is installed."""
    max_in_flight: Annotated[int, Field(gt=0)] | None = None
    """Videos in the engine at once; None: 64 for each engine."""
    max_bytes_in_flight: Annotated[int, Field(gt=0)] | None = None
    """Bytes of pixels in the engine at once; None: 1 GiB for each engine."""
    max_deaths_in_a_row: Annotated[int, Field(ge=0)] = 8
    """Deaths of the engine without an answer in between that are borne; one more stops the run."""


class VLLMCaptioner(FlightCaptioner):
    """A video model in vLLM as a captioner.

    >>> captioner = VLLMCaptioner.from_spec(ModelSpec("vllm", "reelscribe/shapes"))  # doctest: +SKIP
    """

    def __init__(
        self,
        engine: RevivingEngine,
        *,
        policy: FramePolicy,
        flight: InFlight,
        summary: str,
        thinking_note: str | None = None,
    ) -> None:
        self.policy: FramePolicy | None = policy
        """Moments and sizes the model wants."""
        self._engine = engine
        self._flight = flight
        self._summary = summary
        self._thinking_note = thinking_note
        self._end = weakref.finalize(self, flight.close, engine.close)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> VLLMCaptioner:
        """Start the engine with the model that `spec` names.

        Raises:
            MissingExtraError: vLLM is not installed.
            SettingsError: for an unknown or unusable parameter.
            ModelError: when the model cannot be loaded or takes no videos, or the engine does not start.
        """
        start = _EngineStart.from_spec(spec)
        flight = InFlight(
            max_requests=start.options.max_in_flight or REQUESTS_PER_ENGINE * start.engines,
            max_bytes=start.options.max_bytes_in_flight or MAX_BYTES_IN_FLIGHT * start.engines,
        )
        try:
            engine = flight.run(_revived(start))
        except BaseException:
            flight.close()
            raise
        note = start.budgets.thinking.note
        return cls(engine, policy=start.setting.policy, flight=flight, summary=start.summary, thinking_note=note)

    @property
    def notes(self) -> list[str]:
        """What the summary of a run says about this captioner."""
        deaths = self._engine.deaths
        died = f"; it died and was started again {deaths} time{'s' if deaths > 1 else ''}" if deaths else ""
        note = self._thinking_note
        return [self._summary + died, *([] if note is None else [note])]

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Send clips as there is room, yield results as they finish."""
        return self._flight.stream(clips, self._engine.answer)

    def close(self) -> None:
        """End the engine; it ends with this process at the latest."""
        self._end()


async def _revived(start: _EngineStart) -> RevivingEngine:
    return RevivingEngine(start, max_deaths_in_a_row=start.options.max_deaths_in_a_row)


class _EngineStart:
    """Everything an engine is started from, so that it can be started again."""

    def __init__(
        self, spec: ModelSpec, *, options: VLLMOptions, processor: Any, setting: EngineSetting, budgets: Budgets
    ) -> None:
        self.options = options
        self.budgets = budgets
        self.setting = setting
        self._model = spec.model
        self._generation = spec.generation
        self._processor = processor
        self._arguments = engine_arguments(setting, known=_argument_names())
        self._defaults = load_generation_defaults(resolve_model(spec.model), _hub(setting.given))

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> _EngineStart:
        own = {name: value for name, value in spec.options.items() if name in VLLMOptions.model_fields}
        given = {name: value for name, value in spec.options.items() if name not in own}
        options = read_options(VLLMOptions, own)
        on_cpu, devices = _platform(options.device)
        folder = resolve_model(spec.model)
        with loading_errors(spec.model), quiet_transformers():
            config, processor = load_config(folder, _hub(given)), load_processor(folder, _hub(given))
        thinking = thinking_of(processor, options, spec.thinking, model=spec.model)
        setting = EngineSetting(
            policy=policy_from_processor(processor).override(spec.frames),
            exact=has_exact_policy(processor),
            config=config,
            max_tokens=spec.generation.max_tokens,
            on_cpu=on_cpu,
            devices=devices,
            cores=usable_processors(),
            given=given,
            marks=thinking.marks,
            thinking_tokens=0 if thinking.marks is None else thinking.settings.tokens,
        )
        budgets = Budgets(thinking, processor.tokenizer)
        return cls(spec, options=thinking.options(options), processor=processor, setting=setting, budgets=budgets)

    @property
    def engines(self) -> int:
        """Copies of the model."""
        return int(self._arguments.get("data_parallel_size") or 1)

    @property
    def summary(self) -> str:
        """One line about the engine."""
        spread = int(self._arguments.get("tensor_parallel_size") or 1)
        copies = f"{self.engines} engines" if self.engines > 1 else "one engine"
        return f"vLLM, {copies}{f' of {spread} devices each' if spread > 1 else ''}"

    def __call__(self) -> _Engine:
        """Start one; blocks until it is ready.

        Raises:
            ModelError: it does not start.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = AsyncEngineArgs(model=resolve_model(self._model), **_engine_values(self._arguments))
            llm = AsyncLLM.from_engine_args(arguments)
        except Exception as exc:
            raise ModelError(f"vLLM does not start with model {self._model!r}: {_start_advice(exc)}") from exc
        return _Engine(
            llm,
            self._processor,
            options=self.options,
            generation=self._generation,
            defaults=self._defaults,
            budgets=self.budgets,
        )


class _Engine:
    """One living engine; translates requests to vLLM and answers back."""

    def __init__(
        self,
        llm: Any,
        processor: Any,
        *,
        options: VLLMOptions,
        generation: GenerationConfig,
        defaults: Mapping[str, Any],
        budgets: Budgets,
    ) -> None:
        self._llm = llm
        self._budgets = budgets
        self._reasons = budgets.thinking.expected
        self._processor = processor
        self._options = options
        self._generation = generation
        self._defaults = defaults
        self._frame_arguments = frame_arguments(processor)
        self._names = map(str, count())

    async def answer(self, request: CaptionRequest, clip: Clip | None) -> CaptionResult:
        """Send one request and wait for all its candidates."""
        clip = needed_clip(request, clip)
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = resolve_sampling(
            self._generation, num_candidates=request.num_candidates, model_defaults=self._defaults
        )
        try:
            output, thought = await unless_dead(self._written(request, clip, sampling), lambda: bool(self._llm.errored))
        except EngineDiedError:
            raise
        except EngineDeadError as exc:
            raise EngineDiedError from exc
        except Exception as exc:  # what else it raises belongs to the request
            if self._llm.errored:
                raise EngineDiedError from exc
            return CaptionResult(request.id, failure=_failure_of(exc))
        if _is_broken_off(output):
            raise EngineDiedError
        return self._result_of(request, output, sampling, thought)

    async def _written(self, request: CaptionRequest, clip: Clip, sampling: Sampling) -> tuple[Any, Thought | None]:
        """vLLM's output with all candidates, and how they may reason; None: they were given no room for it.

        A model that is not known to reason is given room once it has begun to: the request is made again, and its
        texts begin as they did.
        """
        prompt = self._prompt(request, clip)
        thought = self._budgets.for_prompt(prompt["prompt_token_ids"])
        if thought is None:
            return await self._generate(prompt, _params(request, sampling)), None
        if not (self._reasons or thought.opened):
            output = await self._generate(prompt, _params(request, sampling))
            if not any(thought.begun(list(one.token_ids))[0] == "thinking" for one in output.outputs):
                return output, None
            self._reasons = True
        params = _thinking_params(request, sampling, thought, self._budget(prompt, thought))
        return await self._generate(prompt, params), thought

    def _budget(self, prompt: Mapping[str, Any], thought: Thought) -> int | None:
        """The budget as the engine counts it, from the opening mark on; None: its closing mark is no token of its own,
        so that the engine could not see that it was written."""
        if thought.close_id is None:
            return None
        behind = self._budgets.tokens_after_opening(prompt["prompt_token_ids"]) if thought.opened else 0
        return thought.budget + behind

    async def _generate(self, prompt: Mapping[str, Any], params: Any) -> Any:
        """vLLM's output; it has but one."""
        return [one async for one in self._llm.generate(prompt, params, next(self._names))][-1]

    def _result_of(
        self, request: CaptionRequest, output: Any, sampling: Sampling, thought: Thought | None
    ) -> CaptionResult:
        ended = {one.finish_reason for one in output.outputs}
        if not ended <= {"stop", "length"}:
            reason = Failure("model_error", f"the engine ended the request with {', '.join(sorted(map(str, ended)))}")
            return CaptionResult(request.id, failure=reason)
        own = [
            _candidate_of(one) if thought is None else self._thought_out(one, sampling, thought)
            for one in output.outputs
        ]
        candidates = tuple(own * (request.num_candidates // len(own)))
        usage = Usage(len(output.prompt_token_ids), sum(one.all_tokens for one in candidates))
        return CaptionResult(request.id, candidates, usage=usage)

    def _thought_out(self, output: Any, sampling: Sampling, thought: Thought) -> Candidate:
        """The candidate of a text that may hold reasoning: its answer ends where it would without."""
        tokens = list(output.token_ids)
        return candidate_of(
            tokens,
            [told[token].logprob for token, told in zip(tokens, output.logprobs, strict=True)],
            sampling=sampling,
            eos_ids={tokens[-1]} if output.finish_reason == "stop" and tokens else (),
            text_of=self._budgets.text_of,
            thought=thought,
        )

    def _prompt(self, request: CaptionRequest, clip: Clip) -> Mapping[str, Any]:
        text = render_prompt(self._processor, request, self._options)
        ids = self._processor.tokenizer(text, add_special_tokens=wants_special_tokens(self._processor, text))
        return {
            "prompt_token_ids": list(ids["input_ids"]),
            "multi_modal_data": {"video": [(clip.frames, frame_metadata(clip))]},
            "mm_processor_kwargs": self._frame_arguments,
        }

    def close(self) -> None:
        """End it, and take note of its process' end: until then the system keeps an entry for it."""
        engines = [child for child in multiprocessing.active_children() if ENGINE_PROCESS in child.name]
        self._llm.shutdown()
        until = time.monotonic() + END_SECONDS
        while engines and all(child.is_alive() for child in engines) and time.monotonic() < until:
            time.sleep(END_LOOK_SECONDS)


def _params(request: CaptionRequest, sampling: Sampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1 if sampling.greedy else request.num_candidates,
        seed=request.seed % SEEDS,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        stop=list(sampling.stop),
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _thinking_params(request: CaptionRequest, sampling: Sampling, thought: Thought, budget: int | None) -> Any:
    """The same with room for reasoning; stop strings end answers alone, and are looked for when all is written."""
    params = _params(request, replace(sampling, max_tokens=sampling.max_tokens + thought.most_tokens, stop=()))
    params.thinking_token_budget = budget
    return params


def _engine_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with those that are objects of vLLM's made."""
    given = arguments.get("reasoning_config")
    if not isinstance(given, Mapping):
        return dict(arguments)
    from vllm.config import ReasoningConfig

    return {**arguments, "reasoning_config": ReasoningConfig(**given)}


def _is_broken_off(output: Any) -> bool:
    """Whether the engine gave up on a request; nobody here asks it to, so it has been told to end."""
    return any(one.finish_reason == "abort" for one in output.outputs)


def _candidate_of(output: Any) -> Candidate:
    tokens = len(output.token_ids)
    mean = None if output.cumulative_logprob is None else output.cumulative_logprob / max(tokens, 1)
    return parted(Candidate(text=output.text, finish_reason=output.finish_reason, tokens=tokens, mean_logprob=mean))


_TOO_MANY = ("max_model_len", "maximum model length", "longer than the maximum", "encoder cache", "max_num_batched")
"""Parts of vLLM's messages about a request that is too long for it."""


def _failure_of(exc: BaseException) -> Failure:
    """The failure that an error about one request means; the first cause in its chain says what was wrong."""
    cause: BaseException = exc
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if any(part in str(cause) for part in _TOO_MANY):
        advice = "show fewer or smaller frames (max_frames, max_pixels), or raise max_model_len"
        return Failure("too_many_tokens", f"{short_message(cause)}; {advice}")
    return Failure("model_error", short_message(cause))


def _start_advice(exc: BaseException) -> str:
    if "core initialization failed" in str(exc):
        return (
            "its process ended at start; what it printed before says why (a script needs "
            "`if __name__ == '__main__':` around what it does, since vLLM starts processes of its own)"
        )
    return short_message(exc)


def _platform(device: str | None) -> tuple[bool, int]:
    """Whether the installed vLLM runs on a CPU, and how many accelerators it sees.

    Raises:
        MissingExtraError: vLLM is not installed.
        SettingsError: it does not run on `device`.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.platforms import current_platform
    except ImportError as exc:
        if exc.name == "vllm":
            raise MissingExtraError("vllm", extra="vllm", purpose="enable_vllm (--vllm)") from exc
        raise ModelError(f"vLLM is installed but cannot be imported: {short_message(exc)}") from exc
    kind = str(current_platform.device_type)
    if device not in (None, kind):
        raise SettingsError(
            f"model_params: device {device!r} is not what this vLLM runs on, which is {kind!r}; leave device out "
            "(CUDA_VISIBLE_DEVICES chooses among cards)"
        )
    return current_platform.is_cpu(), 0 if current_platform.is_cpu() else current_platform.device_count()


def _argument_names() -> list[str]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return [one.name for one in fields(AsyncEngineArgs)]


def _hub(given: Mapping[str, Any]) -> dict[str, Any]:
    return {HUB_ARGUMENTS[name]: value for name, value in given.items() if name in HUB_ARGUMENTS}
