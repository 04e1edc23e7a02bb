"""Video models run by transformers in this process.

Batches by token budget, each prepared while the one before it runs, or two side by side on a CPU; the vision encoder
and the prompt of a video run once, whatever the number of candidates.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..record import Candidate, CaptionRequest, CaptionResult, Clip, Failure, Usage
from ..stages import BusyClock
from ..video.sampling import FramePolicy, frame_metadata
from .base import (
    GenerationConfig,
    ModelSpec,
    Sampling,
    ThinkingSettings,
    needed_clip,
    resolve_sampling,
    short_message,
)
from .batching import Waiting
from .context import Context, LongPrompts, fitted, most_positions
from .continuation import CachedContinuation
from .cores import SharedCores, lanes_for, leaves_a_core
from .decoding import Row, write
from .loading import LoadedModel, load_model, quiet_transformers
from .memory import is_out_of_memory, token_budget
from .preparing import Batch, PreparedBatches
from .prompting import (
    TOKENS_PER_FRAME,
    TOKENS_PER_TIMESTAMP,
    frame_arguments,
    has_exact_policy,
    policy_from_processor,
    prompt_tokens,
    render_prompt,
    wants_special_tokens,
)
from .pulling import SideBySide
from .stopping import Stopped, let_stop, stops_when
from .thinking import Budgets, thinking_of
from .vision import Frames, VisionFeatures, can_share, places, sharing_processor
from .written import LONGEST_MARK, Thought


@dataclass(frozen=True, slots=True)
class Job:
    """One video in a batch."""

    request: CaptionRequest
    """What is asked."""
    clip: Clip
    """What is seen."""
    sampling: Sampling
    """How its candidates are written."""
    prompt_tokens: int
    """Tokens of its prompt, estimated."""
    group: Hashable
    """Jobs of different groups cannot share a batch."""

    @property
    def texts(self) -> int:
        """Texts to write; greedy candidates are all one."""
        return 1 if self.sampling.greedy else self.request.num_candidates


class TooLongError(Exception):
    """Prompts of a batch are longer than the model takes; never leaves the module.

    Args:
        failures: what becomes of them, by their place in the batch.
    """

    def __init__(self, failures: Mapping[int, Failure]) -> None:
        super().__init__(len(failures))
        self.failures = failures


class HFCaptioner:
    """A transformers video model as a captioner.

    >>> captioner = HFCaptioner.from_spec(ModelSpec("hf", "reelscribe/shapes"))  # doctest: +SKIP
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        policy: FramePolicy,
        generation: GenerationConfig,
        thinking: ThinkingSettings | None = None,
        name: str = "",
    ) -> None:
        self.policy = policy
        """Moments and sizes the model wants."""
        self._model = loaded.model
        self._processor = loaded.processor
        known = thinking_of(loaded.processor, loaded.options, thinking or ThinkingSettings(), model=name)
        self._budgets = Budgets(known, loaded.processor.tokenizer)
        self._options = known.options(loaded.options)
        self._generation = generation
        self._exact = has_exact_policy(loaded.processor)
        self._tokens_per_frame = TOKENS_PER_FRAME  # until the first batch has shown the true number
        self._context = Context(
            most_positions(loaded.model.config), generation.max_tokens + self._budgets.tokens_per_text
        )
        self._long_prompts = LongPrompts(loaded.processor)
        self._defaults = loaded.model.generation_config.to_dict()
        self._eos_ids = eos_ids(loaded.model, loaded.processor)
        self._lanes = lanes_for(loaded.model)
        if self._lanes > 1:
            let_stop(loaded.model)
        self._budget = token_budget(
            loaded.model,
            side_by_side=self._lanes,
            max_tokens=loaded.options.max_batch_tokens,
            max_size=loaded.options.max_batch_size,
            tokens_per_text=generation.max_tokens + self._budgets.tokens_per_text,
        )
        self._vision = VisionFeatures(loaded.model) if can_share(loaded.model, loaded.processor) else None
        self._clocks = {"prepare": BusyClock(), "model": BusyClock(places=self._lanes)}
        self._preparing = threading.Lock()
        self._ahead = leaves_a_core(loaded.model.device)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> HFCaptioner:
        """Load the model that `spec` names.

        Raises:
            SettingsError: for an unknown or unusable parameter.
            ModelError: when the model cannot be loaded or takes no videos.
        """
        loaded = load_model(spec.model, spec.options)
        policy = policy_from_processor(loaded.processor).override(spec.frames)
        return cls(loaded, policy=policy, generation=spec.generation, thinking=spec.thinking, name=spec.model)

    @property
    def notes(self) -> list[str]:
        """What the summary of a run says about this captioner."""
        note = self._budgets.thinking.note
        return [] if note is None else [note]

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Write captions batch by batch, and pull the clips of the next batches meanwhile.

        On an accelerator the model runs in the caller's thread and the next batch is prepared in another; on a CPU two
        batches run side by side in threads of their own. `clips` is advanced, and in the end closed, in another thread;
        an exception of it is raised here when the present batches have been answered, and what waits is dropped.
        """
        cores = SharedCores(self._lanes)
        with self._prepared_batches(clips, cores) as batches:
            if self._lanes == 1:
                for results in self._answers(batches):
                    yield from results
                return
            lanes = [self._lane(lane, batches, cores) for lane in range(self._lanes)]
            with SideBySide(lanes, stop=batches.close) as answers:
                for results in answers:
                    yield from results

    def _answers(self, batches: _Batches, begin: Callable[[], bool] = lambda: True) -> Iterator[list[CaptionResult]]:
        """The results of batch after batch; `begin` is called before each, and says whether it has the device alone.
        Where one breaks, nobody gets another batch."""
        for batch in batches:
            try:
                if not self._ahead:
                    with self._clocks["model"]:
                        batch.prepare()
                with self._clocks["model"].held(self._lanes if begin() else 1):
                    results = self._answer(batch)
            except BaseException:
                batches.close()
                raise
            yield results

    def _lane(self, lane: int, batches: _Batches, cores: SharedCores) -> Iterator[list[CaptionResult]]:
        """The same in a thread of its own, on its part of the cores; it ends early where `batches` are closed."""

        def begin() -> bool:
            alone = batches.is_last
            cores.take(lane, alone=alone)
            return alone

        try:
            with stops_when(lambda: batches.closing):
                yield from self._answers(batches, begin)
        except Stopped:
            return

    def prepare(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[None]:
        """Make the model's inputs of clips, one after the other, and drop them: to measure what preparing costs."""
        for request, clip in clips:
            self._prepare([self._job(request, clip)])
            yield

    def videos_at_once(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> int:
        """How many such clips the model has at the same time, rounded up: batches side by side included."""
        jobs = sorted((self._job(*one) for one in clips), key=lambda job: job.prompt_tokens)
        batches: list[list[Job]] = []
        for job in jobs:
            if batches and self._budget.fits([*batches[-1], job]):
                batches[-1].append(job)
            else:
                batches.append([job])
        return min(len(jobs), self._lanes * -(-len(jobs) // max(1, len(batches))))

    @property
    def cores(self) -> int:
        """Cores that the model computes on, of those that read videos; 0 on an accelerator."""
        return int(torch.get_num_threads()) if self._model.device.type == "cpu" else 0

    @property
    def batch_size(self) -> int:
        """Videos in one batch at most; fewer where they do not fit the token budget. May be set between streams."""
        return self._budget.max_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._budget.max_size = size

    @property
    def busy_seconds(self) -> dict[str, float]:
        """Seconds at work so far: `prepare` makes prompts and patches, `model` runs the model, and prepares what is not
        prepared ahead of it. While one of two batches that run side by side is waited for, half of the time counts."""
        return {name: clock.seconds for name, clock in self._clocks.items()}

    def close(self) -> None:
        """Give the model's memory back."""
        self._model = self._processor = None
        free_memory()

    def _job(self, request: CaptionRequest, clip: Clip | None) -> Job:
        clip = needed_clip(request, clip)
        if self.policy.fit and self._context.failure(self._estimate(request, clip)) is not None:
            clip = self._fitted(request, clip) or clip
        return Job(
            request=request,
            clip=clip,
            sampling=resolve_sampling(
                self._generation, num_candidates=request.num_candidates, model_defaults=self._defaults
            ),
            prompt_tokens=self._estimate(request, clip),
            group=None if self._exact else clip.frames.shape,
        )

    def _fitted(self, request: CaptionRequest, clip: Clip) -> Clip | None:
        """The clip with as many frames as the model takes; None where it takes none. Called in any thread."""
        if self._context.room is None:
            return clip

        def length_with(clip: Clip) -> int:
            with self._preparing, self._clocks["prepare"], quiet_transformers():
                return prompt_tokens(self._processor, request, clip, self._options)

        return fitted(clip, self.policy, room=self._context.room, length_with=length_with)

    def _estimate(self, request: CaptionRequest, clip: Clip) -> int:
        words = 64 + (len(request.prompt) + len(request.system_prompt or "")) // 3
        frames, height, width = (int(side) for side in clip.frames.shape[:3])
        if not self._exact:
            return words + frames * self._tokens_per_frame
        a_step = height * width // self.policy.multiple**2 + TOKENS_PER_TIMESTAMP
        return words + -(-frames // self.policy.temporal_patch) * a_step

    @contextmanager
    def _prepared_batches(
        self, clips: Iterable[tuple[CaptionRequest, Clip | None]], cores: SharedCores
    ) -> Iterator[_Batches]:
        waiting: Waiting[Job] = Waiting(self._budget, max_wait_seconds=self._options.max_batch_wait_seconds)
        self._ahead = leaves_a_core(self._model.device)
        batches = PreparedBatches(
            clips,
            item_of=lambda pulled: self._job(*pulled),
            waiting=waiting,
            prepare=self._prepare,
            ahead=self._ahead,
            owners=self._lanes,
            begin=cores.keep_to_one if self._model.device.type == "cpu" else lambda: None,
        )
        try:
            with batches:
                yield batches
        finally:
            if self._vision is not None:
                self._vision.clear()

    def _answer(self, batch: _Batch) -> list[CaptionResult]:
        """Results of a batch; one that breaks is taken apart until each failure has its own video."""
        half = -(-len(batch.items) // 2)
        if not self._budget.fits(batch.items):  # the budget has shrunk since it was formed
            return self._answer_parts(batch, half)
        try:
            with torch.inference_mode():
                return self._caption_batch(batch)
        except TooLongError as exc:
            return self._answer_others(batch, exc.failures)
        except Exception as exc:  # any error of a model belongs to the videos it was shown
            failure = failure_of(exc)
        too_much = failure.kind == "out_of_memory"
        alone = len(batch.items) == 1
        if alone and not (too_much and batch.has_neighbours):
            return [CaptionResult(batch.items[0].request.id, failure=failure)]
        if too_much and not alone:
            self._budget.shrink_below(batch.items)
        return self._answer_parts(batch, half if too_much else 1)

    def _answer_others(self, batch: _Batch, failures: Mapping[int, Failure]) -> list[CaptionResult]:
        """Results of a batch of which some prompts are too long: these with fewer frames where that was asked for."""
        others = [job for place, job in enumerate(batch.items) if place not in failures]
        results = self._answer(batch.of(others)) if others else []
        for place, failure in failures.items():
            request, clip = batch.items[place].request, batch.items[place].clip
            fewer = self._fitted(request, clip) if self.policy.fit else None
            if fewer is None:
                results.append(CaptionResult(request.id, failure=failure))
            else:
                results += self._answer(batch.of([self._job(request, fewer)]))
        return results

    def _answer_parts(self, batch: _Batch, size: int) -> list[CaptionResult]:
        """Results of a batch, `size` videos at a time, with the device to themselves."""
        batch.release()
        with batch.alone():
            free_memory()
            return [result for part in batch.parts(size) for result in self._answer(part)]

    def _caption_batch(self, batch: _Batch) -> list[CaptionResult]:
        model, ids, mask = self._read(batch)
        lengths = mask.sum(-1).tolist()
        if not self._exact:
            self._tokens_per_frame = max(1, max(lengths) // max(map(len, _frames(batch.items))))
        thoughts = [self._budgets.for_prompt(one) for one in ids[:, -LONGEST_MARK:].tolist()]
        rows = [row for index, job in enumerate(batch.items) for row in rows_of(job, index, thoughts[index])]
        written = write(model, rows, prompt_ids=ids, prompt_mask=mask, eos_ids=self._eos_ids, text_of=self._text_of)
        return results_of(batch.items, lengths, written)

    def _read(self, batch: _Batch) -> tuple[CachedContinuation, torch.Tensor, torch.Tensor]:
        """Let the model read the prompts of a batch, and let go of its pixels; with the prompts' tokens and mask."""
        inputs = batch.prepared()
        self._check_lengths(batch, inputs["attention_mask"])
        if self._vision is not None:
            inputs = self._vision.in_place_of_pixels(inputs, _frames(batch.items), later=_frames(batch.later()))
        return CachedContinuation.read(self._model, inputs), inputs["input_ids"], inputs["attention_mask"]

    def _check_lengths(self, batch: _Batch, mask: torch.Tensor) -> None:
        """Stop before the model reads prompts that it does not take.

        Raises:
            TooLongError: naming them.
        """
        failures = {}
        for place, (job, length) in enumerate(zip(batch.items, mask.sum(-1).tolist(), strict=True)):
            self._long_prompts.note(job.request, length)
            failure = self._context.failure(length)
            if failure is not None:
                failures[place] = failure
        if failures:
            raise TooLongError(failures)

    def _prepare(self, jobs: Sequence[Job]) -> Mapping[str, Any]:
        """What the model reads for these jobs; called in any thread. A processor is for one thread at a time: its
        tokenizer is set anew for each call."""
        with self._preparing, self._clocks["prepare"], torch.inference_mode():
            return self._inputs(jobs)

    def _inputs(self, batch: Sequence[Job]) -> Mapping[str, Any]:
        """What the processor makes of a batch, left-padded, on the model's device.

        Where a clip is repeated and its features can be shared, its pixels stand there once.
        """
        with quiet_transformers():
            texts = [render_prompt(self._processor, job.request, self._options) for job in batch]
            frames = _frames(batch)
            writable = {id(one): _writable(one) for one in frames}
            inputs = self._processor_for(frames)(
                text=texts,
                videos=[[writable[id(one)]] for one in frames],
                text_kwargs=self._text_arguments(texts[0]),
                videos_kwargs=self._video_arguments(batch),
                return_tensors="pt",
            )
        return {name: self._placed(name, value) for name, value in inputs.items()}

    def _processor_for(self, frames: Sequence[Frames]) -> Any:
        shares = self._vision is not None and len(places(frames)) < len(frames)
        return sharing_processor(self._processor) if shares else self._processor

    def _text_arguments(self, prompt: str) -> dict[str, Any]:
        arguments = {"padding": True, "padding_side": "left"}
        if not wants_special_tokens(self._processor, prompt):
            arguments["add_special_tokens"] = False
        return arguments

    def _video_arguments(self, batch: Sequence[Job]) -> dict[str, Any]:
        """The frames are the ones to show, with their own times; where the policy is exact, at their final size."""
        arguments: dict[str, Any] = {
            **frame_arguments(self._processor),
            "video_metadata": [[frame_metadata(job.clip)] for job in batch],
            "input_data_format": "channels_last",
        }
        if self._model.device.type == "cuda":
            arguments["device"] = self._model.device
        return arguments

    def _placed(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = self._model.dtype if name.startswith("pixel_values") else None
        return value.to(self._model.device, dtype=dtype)

    def _text_of(self, tokens: Sequence[int]) -> str:
        text: str = self._processor.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


_Batch = Batch[Job, Mapping[str, Any]]
_Batches = PreparedBatches[Any, Job, Mapping[str, Any]]


def rows_of(job: Job, index: int, thought: Thought | None = None) -> list[Row]:
    """The texts to write for the job at `index` of its batch."""
    return [Row(index, job.sampling, job.request.seed, candidate, thought) for candidate in range(job.texts)]


def results_of(batch: Sequence[Job], lengths: Sequence[int], written: Sequence[Candidate]) -> list[CaptionResult]:
    """Deal the written texts back to their requests; greedy candidates are copies of one text."""
    texts = iter(written)
    results = []
    for job, length in zip(batch, lengths, strict=True):
        own = [next(texts) for _ in range(job.texts)]
        candidates = tuple(own * (job.request.num_candidates // len(own)))
        usage = Usage(prompt_tokens=length, completion_tokens=sum(one.all_tokens for one in candidates))
        results.append(CaptionResult(job.request.id, candidates, usage=usage))
    return results


def eos_ids(model: Any, processor: Any) -> frozenset[int]:
    """Tokens that end a text: of the generation config, else of the config, else of the tokenizer."""
    places = (model.generation_config, model.config.get_text_config(decoder=True), processor.tokenizer)
    for place in places:
        ids = getattr(place, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def failure_of(exc: Exception) -> Failure:
    """The failure that an exception of the model means for a video shown alone."""
    if is_out_of_memory(exc):
        return Failure("out_of_memory", "the video does not fit in the memory of the device, even alone in its batch")
    return Failure("model_error", short_message(exc))


def free_memory() -> None:
    """Hand cached device memory back, so that a smaller batch finds it in one piece."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _frames(jobs: Iterable[Job]) -> list[Frames]:
    return [job.clip.frames for job in jobs]


def _writable(frames: np.ndarray) -> np.ndarray:
    return frames if frames.flags.writeable and frames.flags.c_contiguous else frames.copy()
