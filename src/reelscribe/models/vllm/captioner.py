"""Video models run by vLLM's engine, started by this process.

One asynchronous engine lives as long as the captioner: requests enter as clips arrive, results leave as they finish.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import count
from typing import Annotated, Any

from pydantic import Field

from ...errors import MissingExtraError, ModelError, SettingsError
from ...types import Candidate, CaptionRequest, CaptionResult, Clip, Failure, Usage
from ...video.frames.moments import FramePolicy, frame_metadata
from ...video.processes.clip_stream import usable_processors
from ..adapters import Adapter, Checkpoint, find_checkpoint
from ..captioner import (
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
from ..chat import (
    frame_arguments,
    has_exact_policy,
    policy_from_processor,
    render_prompt,
    resolve_model,
    wants_special_tokens,
)
from ..context import Context, LongPrompts, fitted
from ..in_flight import MAX_BYTES_IN_FLIGHT, FlightCaptioner, InFlight
from ..inputs import Asking
from ..loading import (
    check_tokenizer,
    load_config,
    load_generation_defaults,
    load_own_processor,
    loading_errors,
    quiet_transformers,
)
from ..thinking import Budgets, thinking_of
from ..trial import TRIAL_GENERATION, check, trial_requests
from ..written import Thought, candidate_of, parted
from .arguments import LORA_RANKS, EngineSetting, engine_arguments
from .model_class import EngineClass, check_videos, engine_class
from .revival import EngineDiedError, RevivingEngine, unless_dead

REQUESTS_PER_ENGINE = 64
"""Requests in flight per engine: with four candidates they fill its 256 sequences."""
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""Default environment of the engine, which the user's overrides: errors only, no usage reports, and no fork of a
process that has threads."""

ENGINE_PROCESS = "EngineCore"
"""Prefix of vLLM's names of engine processes."""
END_SECONDS, END_LOOK_SECONDS = 10.0, 0.05
"""How long to wait for an engine's process to end, and how often to check."""

SHOWN_AS_THEY_ARE = {"do_sample_frames": False}
"""Part of each video's metadata, as from vLLM's own readers: some of its classes (GLM-4.1V) look only there."""

HUB_ARGUMENTS = {
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "hf_token": "token",
    "download_dir": "cache_dir",
}
"""Arguments of the engine that select which files to read, and their names in transformers."""


class VLLMOptions(PromptOptions):
    """Parameters of `model_params` that are ours; every other goes to vLLM's `AsyncEngineArgs`."""

    device: str | None = None
    """`cpu` or `cuda`, as a check: the installed vLLM determines which."""
    adapter: str | None = None
    """A LoRA saved by peft, to load into the model: a folder, or a name on the hub."""
    max_in_flight: Annotated[int, Field(gt=0)] | None = None
    """Videos in the engine at once; None: 64 per engine."""
    max_bytes_in_flight: Annotated[int, Field(gt=0)] | None = None
    """Bytes of pixels in the engine at once; None: 1 GiB per engine."""
    max_deaths_in_a_row: Annotated[int, Field(ge=0)] = 8
    """Deaths of the engine without an answer in between that are tolerated; one more stops the run."""


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
        """The model's frame policy."""
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
            SettingsError: an unknown or unusable parameter.
            ModelError: the model cannot be loaded or takes no videos, or the engine does not start.
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
        """Notes for the summary of a run."""
        deaths = self._engine.deaths
        died = f"; it died and was restarted {deaths} time{'s' if deaths > 1 else ''}" if deaths else ""
        note = self._thinking_note
        return [self._summary + died, *([] if note is None else [note])]

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Send clips as there is room, yield results as they finish."""
        return self._flight.stream(clips, self._engine.answer)

    def close(self) -> None:
        """Stop the engine; it stops with this process at the latest."""
        self._end()


async def _revived(start: _EngineStart) -> RevivingEngine:
    first = start()
    try:
        await first.check_adapter()
        with loading_errors(start.model):
            await first.try_out()
    except BaseException:
        first.close()
        raise
    started = [first]  # emptied, so that nothing holds an engine that was ended

    def next_engine() -> _Engine:
        return started.pop() if started else start()

    return RevivingEngine(next_engine, max_deaths_in_a_row=start.options.max_deaths_in_a_row)


class _EngineStart:
    """Everything an engine is started from, so that it can be restarted."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        options: VLLMOptions,
        processor: Any,
        setting: EngineSetting,
        source: Checkpoint,
        budgets: Budgets,
    ) -> None:
        self.options = options
        self.budgets = budgets
        self.setting = setting
        self.model = spec.model
        """Its name, as it was given."""
        self._source = source
        self._generation = spec.generation
        self._processor = processor
        self._arguments = engine_arguments(setting, known=_argument_names())
        self._defaults = load_generation_defaults(source.base, source.hub)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> _EngineStart:
        own = {name: value for name, value in spec.options.items() if name in VLLMOptions.model_fields}
        given = {name: value for name, value in spec.options.items() if name not in own}
        options = read_options(VLLMOptions, own)
        on_cpu, devices = _platform(options.device)
        resolve_model(spec.model)
        with loading_errors(spec.model), quiet_transformers():
            source = find_checkpoint(spec.model, _hub(given), adapter=options.adapter)
        with loading_errors(spec.model, base=source.base), quiet_transformers():
            config, processor = load_config(source.base, source.hub), load_own_processor(source)
            check_tokenizer(processor, config)
            looks = source.adapter is not None and _looks(source.adapter, config)
        names = {ours: name for name, ours in HUB_ARGUMENTS.items()}
        given = {name: value for name, value in given.items() if name not in HUB_ARGUMENTS}
        given |= {names[name]: value for name, value in source.hub.items()}
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
            lora_rank=None if source.adapter is None else source.adapter.rank,
            lora_looks=looks,
        )
        found = _class_of(source.base, setting)
        with loading_errors(spec.model, base=source.base), quiet_transformers():
            check_videos(found, processor, setting.policy)
        setting = replace(setting, hybrid=found.is_hybrid)
        return cls(
            spec,
            options=thinking.options(options),
            processor=processor,
            setting=setting,
            source=source,
            budgets=Budgets(thinking, processor.tokenizer),
        )

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
            arguments = AsyncEngineArgs(model=self._source.base, **_engine_values(self._arguments))
            llm = AsyncLLM.from_engine_args(arguments)
        except Exception as exc:
            raise ModelError(f"vLLM does not start with model {self.model!r}: {_start_advice(exc)}") from exc
        return _Engine(
            llm,
            self._processor,
            policy=self.setting.policy,
            options=self.options,
            generation=self._generation,
            defaults=self._defaults,
            adapter=self._source.adapter,
            budgets=self.budgets,
        )


class _Engine:
    """One running engine; translates requests to vLLM and answers back."""

    def __init__(
        self,
        llm: Any,
        processor: Any,
        *,
        policy: FramePolicy,
        options: VLLMOptions,
        generation: GenerationConfig,
        defaults: Mapping[str, Any],
        budgets: Budgets,
        adapter: Adapter | None = None,
    ) -> None:
        self._llm = llm
        self._budgets = budgets
        self._reasons = budgets.thinking.expected
        self._adapter = adapter
        self._lora = None if adapter is None else _lora_request(adapter)
        self._policy = policy
        self._context = Context(
            llm.vllm_config.model_config.max_model_len, generation.max_tokens + budgets.tokens_per_text
        )
        self._long_prompts = LongPrompts(processor)
        self._measuring = threading.Lock()
        self._processor = processor
        self._options = options
        self._generation = generation
        self._defaults = defaults
        self._frame_arguments = frame_arguments(processor)
        self._names = map(str, count())

    async def answer(self, request: CaptionRequest, clip: Clip | None) -> CaptionResult:
        """Send one request and wait for all its candidates; if it is too long, retry with fewer frames if requested
        (`fit`)."""
        clip = needed_clip(request, clip)
        result = await self._answer(request, clip)
        self._long_prompts.note(request, result.usage.prompt_tokens)
        if not self._policy.fit or result.failure is None or result.failure.kind != "too_many_tokens":
            return result
        fewer = await asyncio.to_thread(self._fitted, request, clip)
        return result if fewer is None or fewer is clip else await self._answer(request, fewer)

    def _fitted(self, request: CaptionRequest, clip: Clip) -> Clip | None:
        """The clip with as many frames as the engine accepts, as counted by the model's processor."""

        asking = Asking(self._processor, self._options)

        def length_with(clip: Clip) -> int:
            with quiet_transformers():
                return len(asking.ask([(request, clip)])["input_ids"][0])

        with self._measuring:
            return fitted(clip, self._policy, room=self._context.room or 0, length_with=length_with)

    async def _answer(self, request: CaptionRequest, clip: Clip) -> CaptionResult:
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
        except Exception as exc:  # any other error belongs to the request
            if self._llm.errored:
                raise EngineDiedError from exc
            return CaptionResult(request.id, failure=_failure_of(exc))
        if _is_broken_off(output):
            raise EngineDiedError
        return self._result_of(request, output, sampling, thought)

    async def _written(self, request: CaptionRequest, clip: Clip, sampling: Sampling) -> tuple[Any, Thought | None]:
        """vLLM's output with all candidates, and how they may reason; None: they had no room for it.

        A model that is not known to reason gets room once it has started to: the request is repeated, and its texts
        start as before.
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
        """The budget as the engine counts it, from the opening mark on; None: its closing mark is not a single token,
        so the engine could not detect it."""
        if thought.close_id is None:
            return None
        behind = self._budgets.tokens_after_opening(prompt["prompt_token_ids"]) if thought.opened else 0
        return thought.budget + behind

    async def _generate(self, prompt: Mapping[str, Any], params: Any) -> Any:
        """vLLM's only output."""
        outputs = self._llm.generate(prompt, params, next(self._names), lora_request=self._lora)
        return [one async for one in outputs][-1]

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
        """The candidate of a text that may contain reasoning: its answer ends where it would without."""
        tokens = list(output.token_ids)
        return candidate_of(
            tokens,
            [told[token].logprob for token, told in zip(tokens, output.logprobs, strict=True)],
            sampling=sampling,
            eos_ids={tokens[-1]} if output.finish_reason == "stop" and tokens else (),
            text_of=self._budgets.text_of,
            thought=thought,
        )

    async def try_out(self) -> None:
        """Caption a tiny clip.

        Raises:
            ModelError: it cannot be captioned.
        """
        request, clip = trial_requests(self._policy)[0]
        sampling = resolve_sampling(
            TRIAL_GENERATION, num_candidates=request.num_candidates, model_defaults=self._defaults
        )
        try:
            params = _params(request, sampling)
            await unless_dead(self._generate(self._prompt(request, clip), params), lambda: bool(self._llm.errored))
        except Exception as exc:  # whatever it raises, every video would raise
            check([CaptionResult(request.id, failure=_failure_of(exc))])

    async def check_adapter(self) -> None:
        """Check that the engine accepts the adapter and applies it: it does not report weights that it cannot place.

        Raises:
            ModelError: it does not.
        """
        if self._lora is None or self._adapter is None:
            return
        try:
            await self._llm.add_lora(self._lora)
            scores = [await self._scores(lora) for lora in (None, self._lora)]
        except Exception as exc:  # whatever its objection is
            raise ModelError(
                f"vLLM does not accept the adapter {str(self._adapter.folder)!r}: {short_message(exc)}; {_OTHER_WAYS}"
            ) from exc
        _, writes = self._adapter.looks_and_writes()
        if writes and scores[0] == scores[1]:
            raise ModelError(
                f"the adapter {str(self._adapter.folder)!r} has no effect in vLLM, which finds no place for its "
                f"weights; {_OTHER_WAYS}"
            )

    async def _scores(self, lora: Any) -> dict[int, float]:
        """The most likely tokens of a short text, and their log-probabilities."""
        from vllm import SamplingParams

        ids = self._processor.tokenizer("Describe the video.")["input_ids"]
        asked = SamplingParams(max_tokens=1, temperature=0.0, logprobs=8)
        outputs = self._llm.generate({"prompt_token_ids": list(ids)}, asked, next(self._names), lora_request=lora)
        (found,) = [one async for one in outputs][-1].outputs[0].logprobs
        return {token: score.logprob for token, score in found.items()}

    def _prompt(self, request: CaptionRequest, clip: Clip) -> Mapping[str, Any]:
        text = render_prompt(self._processor, request, self._options)
        ids = self._processor.tokenizer(text, add_special_tokens=wants_special_tokens(self._processor, text))
        return {
            "prompt_token_ids": list(ids["input_ids"]),
            "multi_modal_data": {"video": [(clip.frames, {**frame_metadata(clip), **SHOWN_AS_THEY_ARE})]},
            "mm_processor_kwargs": self._frame_arguments,
        }

    def close(self) -> None:
        """Stop it, and reap its process."""
        engines = [child for child in multiprocessing.active_children() if ENGINE_PROCESS in child.name]
        self._llm.shutdown()
        until = time.monotonic() + END_SECONDS
        while engines and all(child.is_alive() for child in engines) and time.monotonic() < until:
            time.sleep(END_LOOK_SECONDS)


def _class_of(model: str, setting: EngineSetting) -> EngineClass:
    """The class that vLLM runs a model with.

    Raises:
        SettingsError: an argument that it does not accept.
        ModelError: it does not support the model, or not with these arguments.
    """
    arguments = engine_arguments(setting, known=_argument_names())
    try:
        with quiet_transformers():
            return engine_class(resolve_model(model), arguments)
    except Exception as exc:
        raise ModelError(f"vLLM does not start with model {model!r}: {_start_advice(exc)}") from exc


_OTHER_WAYS = "leave out enable_vllm (--vllm), or merge it into its model first (peft's merge_and_unload)"


def _looks(adapter: Adapter, config: Any) -> bool:
    """Whether a LoRA changes the part of the model that reads pictures.

    Raises:
        ModelError: it is not a LoRA, or does so in a model for which vLLM would ignore that part.
    """
    kind = str(adapter.config.get("peft_type"))
    if kind != "LORA":
        raise ModelError(
            f"vLLM supports only LoRAs, and the adapter {str(adapter.folder)!r} is of type {kind}; {_OTHER_WAYS}"
        )
    _check_lora(adapter)
    looks, _ = adapter.looks_and_writes()
    if looks and not any(map(_has_tower_loras, config.architectures or ())):
        raise ModelError(
            f"the adapter {str(adapter.folder)!r} changes the part of the model that reads pictures, which vLLM would "
            f"ignore for this model; {_OTHER_WAYS}"
        )
    return looks


def _check_lora(adapter: Adapter) -> None:
    """Refuse LoRA features that vLLM does not support, before an engine is started.

    Raises:
        ModelError: the message names the feature.
    """
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    try:
        PEFTHelper.from_dict(dict(adapter.config)).validate_legal(LoRAConfig(max_lora_rank=LORA_RANKS[-1]))
    except (TypeError, ValueError) as exc:
        raise ModelError(
            f"vLLM does not accept the adapter {str(adapter.folder)!r}: {short_message(exc)}; {_OTHER_WAYS}"
        ) from exc


def _has_tower_loras(architecture: str) -> bool:
    """Whether vLLM's own class of a model supports LoRAs of the part that reads pictures."""
    from vllm.model_executor.models import ModelRegistry

    found = ModelRegistry.models.get(architecture)
    return found is not None and bool(getattr(found.load_model_cls(), "supports_tower_connector_lora", False))


def _lora_request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.folder.name or "adapter", 1, str(adapter.folder))


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
    """The same with room for reasoning; stop strings end only answers, and are applied at the end."""
    params = _params(request, replace(sampling, max_tokens=sampling.max_tokens + thought.most_tokens, stop=()))
    params.thinking_token_budget = budget
    return params


def _engine_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with vLLM's own objects built."""
    given = arguments.get("reasoning_config")
    if not isinstance(given, Mapping):
        return dict(arguments)
    from vllm.config import ReasoningConfig

    return {**arguments, "reasoning_config": ReasoningConfig(**given)}


def _is_broken_off(output: Any) -> bool:
    """Whether the engine aborted a request; nothing here does that, so it is shutting down."""
    return any(one.finish_reason == "abort" for one in output.outputs)


def _candidate_of(output: Any) -> Candidate:
    tokens = len(output.token_ids)
    mean = None if output.cumulative_logprob is None else output.cumulative_logprob / max(tokens, 1)
    return parted(Candidate(text=output.text, finish_reason=output.finish_reason, tokens=tokens, mean_logprob=mean))


_TOO_MANY = ("max_model_len", "maximum model length", "longer than the maximum", "encoder cache", "max_num_batched")
"""Parts of vLLM's messages about a request that is too long for it."""


def _failure_of(exc: BaseException) -> Failure:
    """The failure for an error about one request; the first cause in its chain is what was wrong."""
    cause: BaseException = exc
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if any(part in str(cause) for part in _TOO_MANY):
        advice = "show fewer or smaller frames (max_frames, max_pixels), as many as fit (fit), or raise max_model_len"
        return Failure("too_many_tokens", f"{short_message(cause)}; {advice}")
    return Failure("model_error", short_message(cause))


def _start_advice(exc: BaseException) -> str:
    if "core initialization failed" in str(exc):
        return (
            "its process ended at start; its output above says why (a script needs "
            "`if __name__ == '__main__':` around its main code, since vLLM starts its own processes)"
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
            f"model_params: device {device!r} is not available: this vLLM runs on {kind!r}; leave device out "
            "(CUDA_VISIBLE_DEVICES selects GPUs)"
        )
    return current_platform.is_cpu(), 0 if current_platform.is_cpu() else current_platform.device_count()


def _argument_names() -> list[str]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return [one.name for one in fields(AsyncEngineArgs)]


def _hub(given: Mapping[str, Any]) -> dict[str, Any]:
    return {HUB_ARGUMENTS[name]: value for name, value in given.items() if name in HUB_ARGUMENTS}
