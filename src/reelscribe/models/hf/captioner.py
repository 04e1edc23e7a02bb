"""Video models run by transformers in this process.

Batches by token budget, each prepared while the one before it runs, or two side by side on a CPU; the vision encoder
and the prompt of a video run once, whatever the number of candidates.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...timing import BusyClock
from ...types import Candidate, CaptionRequest, CaptionResult, Clip, Failure, Usage
from ...video.frames.moments import FramePolicy
from ..captioner import (
    GenerationConfig,
    ModelSpec,
    Sampling,
    ThinkingSettings,
    needed_clip,
    resolve_sampling,
    short_message,
)
from ..chat import TOKENS_PER_FRAME, TOKENS_PER_TIMESTAMP, has_exact_policy, policy_from_processor
from ..classes import hears
from ..context import Context, LongPrompts, fitted, most_positions
from ..inputs import Asking, Shown
from ..loading import LoadedModel, load_model, loading_errors, quiet_transformers
from ..puller import SideBySide
from ..thinking import NO_THINKING, Budgets, thinking_of
from ..trial import TRIAL_GENERATION, check, failed, trial_requests
from ..written import LONGEST_MARK, Thought
from .batches import Batch, PreparedBatches
from .budget import is_out_of_memory, token_budget
from .cores import SharedCores, lanes_for, leaves_a_core
from .generate import Row, write
from .interrupt import Stopped, let_stop, stops_when
from .joining import JoinedInputs, found_alike, joined, remembering
from .kv_cache import Axes, CachedContinuation, carried_axes
from .vision import Frames, VisionFeatures, can_share, places
from .waiting import Waiting

OTHER_PROMPTS = 16
"""How many times longer the other prompt is when testing whether prompts of a batch affect each other."""
MOST_BY_OTHERS = 0.01
"""Share of the spread of scores by which a batch may change one; rounding is a hundred times less."""
SOUND_NOTE = "the model can hear, but the sound of the videos is not given to it: its captions are of what is seen"


@dataclass(frozen=True, slots=True)
class Job:
    """One video in a batch."""

    request: CaptionRequest
    """The request."""
    clip: Clip
    """The clip."""
    sampling: Sampling
    """How its candidates are generated."""
    prompt_tokens: int
    """Estimated tokens of its prompt."""
    group: Hashable
    """Jobs of different groups cannot share a batch."""

    @property
    def texts(self) -> int:
        """Texts to write; greedy candidates are all one."""
        return 1 if self.sampling.greedy else self.request.num_candidates


class TooLongError(Exception):
    """Prompts of a batch exceed the model's context; never leaves the module.

    Args:
        failures: their failures, by index in the batch.
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
        """The timestamps and sizes the model requires."""
        self._model = loaded.model
        self._processor = loaded.processor
        known = thinking_of(loaded.processor, loaded.options, thinking or ThinkingSettings(), model=name)
        self._budgets = Budgets(known, loaded.processor.tokenizer)
        self._options = known.options(loaded.options)
        self._generation = generation
        self._exact = has_exact_policy(loaded.processor)
        self._pad_id = loaded.processor.tokenizer.pad_token_id
        device = loaded.model.device
        self._asking = Asking(loaded.processor, self._options, device=device if device.type == "cuda" else None)
        self._carried: Axes = {}
        self._selects = True
        self._alone = False
        self._alike: tuple[str, ...] | None = None
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
        self._vision: VisionFeatures | None = None
        self._clocks = {"prepare": BusyClock(), "model": BusyClock(places=self._lanes)}
        self._preparing = threading.Lock()
        self._ahead = leaves_a_core(loaded.model.device)
        self._alike = self._found_alike()
        if self._alike is not None and can_share(loaded.model, loaded.processor):
            self._vision = VisionFeatures(loaded.model)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> HFCaptioner:
        """Load the model that `spec` names.

        Raises:
            SettingsError: for an unknown or unusable parameter.
            ModelError: when the model cannot be loaded or does not accept videos.
        """
        loaded = load_model(spec.model, spec.options)
        policy = policy_from_processor(loaded.processor).override(spec.frames)
        captioner = cls(loaded, policy=policy, generation=spec.generation, thinking=spec.thinking, name=spec.model)
        with loading_errors(spec.model):
            captioner.try_out()
        return captioner

    def try_out(self) -> None:
        """Caption a tiny clip, and find out what the model's cache supports and whether batches can be shared.

        Leaves the figures that streams report, and the estimates for batches, unchanged.

        Raises:
            ModelError: when it cannot be captioned.
        """
        settings = self._generation, self._eos_ids, self._tokens_per_frame, self._budgets
        self._generation, self._eos_ids = TRIAL_GENERATION, frozenset()
        self._budgets = Budgets(NO_THINKING, self._processor.tokenizer)  # two tokens are enough to try
        try:
            self._try_out([self._job(*shown) for shown in trial_requests(self.policy)])
        finally:
            self._generation, self._eos_ids, self._tokens_per_frame, self._budgets = settings
            self._clocks["prepare"] = BusyClock()
            if self._vision is not None:
                self._vision.clear()

    def _try_out(self, jobs: Sequence[Job]) -> None:
        self._carried = self._found_carried(jobs[0])
        results = self._tried(jobs[:1])
        if results[0].failure is not None:
            self._selects = False
            results = self._tried(jobs[:1])
        check(results)
        if not self._exact:
            self._try_batches(jobs)

    def _try_batches(self, jobs: Sequence[Job]) -> None:
        """Find out what clips and prompts of a batch have of one another."""
        try:
            self._alone = self._suffers_from_others(_shown(jobs)[0])
        except Exception:  # some processors take one prompt at a time (NemotronH-Omni)
            self._alone = True
        self.batch_size = self._budget.max_size
        if self._vision is None:
            return
        try:
            with torch.inference_mode():
                self._vision.apart = self._vision.mixes(self._inputs(jobs[:2]), _frames(jobs[:2]))
        except Exception:  # features that cannot be separated, or encoded in advance, are not shared
            self._vision = None
        if self._vision is not None and failed(self._tried([jobs[0], jobs[1], jobs[0]])):
            self._vision = None

    def _tried(self, jobs: Sequence[Job]) -> list[CaptionResult]:
        return self._answer(Batch(jobs, self._prepare))

    def _found_carried(self, job: Job) -> Axes:
        try:
            return carried_axes(lambda count: self._read_plainly([_shown([job])[0]] * count))
        except Exception:  # shows when the clip is captioned
            return {}

    def _suffers_from_others(self, shown: Shown) -> bool:
        """Whether a prompt is read differently in a batch than alone (GLM-5-Next, MiniMax M3; so with `generate`). In
        half precision rounding hides it."""
        if self._model.dtype != torch.float32:
            return False
        request, clip = shown
        longer = replace(request, prompt=" ".join([request.prompt] * OTHER_PROMPTS))
        other = longer, replace(clip, frames=255 - clip.frames[::-1])
        alone = self._read_plainly([shown]).logits[0]
        among = self._read_plainly([shown, other]).logits[0]
        return bool((alone - among).abs().max() > MOST_BY_OTHERS * alone.std())

    def _read_plainly(self, shown: Sequence[Shown]) -> CachedContinuation:
        with quiet_transformers(), torch.inference_mode():
            if self._alike is None:
                inputs = self._asking.ask(shown)
            else:
                inputs = joined([self._asking.ask([one]) for one in shown], pad_id=self._pad_id)
            placed = {name: self._placed(name, value) for name, value in inputs.items()}
            return CachedContinuation.read(self._model, placed)

    @property
    def notes(self) -> list[str]:
        """Notes on this captioner for the summary of a run."""
        thinking = self._budgets.thinking.note
        return [*([SOUND_NOTE] if hears(self._model) else []), *([] if thinking is None else [thinking])]

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
        """The same in a separate thread, on its share of the cores; ends early if `batches` are closed."""

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
        """Prepare the model's inputs for clips, one after the other, and drop them, to measure the cost of
        preparing."""
        for request, clip in clips:
            self._prepare([self._job(request, clip)])
            yield

    def videos_at_once(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> int:
        """How many such clips the model takes at the same time, rounded up, including parallel batches."""
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
        """Videos in one batch at most; fewer where they do not fit the token budget, and 1 for a model whose
        prompts disturb one another. May be set between streams."""
        return self._budget.max_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._budget.max_size = 1 if self._alone else size

    @property
    def busy_seconds(self) -> dict[str, float]:
        """Busy seconds so far: `prepare` makes prompts and patches, `model` runs the model, and prepares what is not
        prepared ahead of it. While one of two batches that run side by side is waited for, half of the time counts."""
        return {name: clock.seconds for name, clock in self._clocks.items()}

    def close(self) -> None:
        """Free the model's memory."""
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
            group=self._group(clip),
        )

    def _fitted(self, request: CaptionRequest, clip: Clip) -> Clip | None:
        """The clip with as many frames as the model accepts; None if it accepts none. Called in any thread."""
        if self._context.room is None:
            return clip

        def length_with(clip: Clip) -> int:
            with self._preparing, self._clocks["prepare"], quiet_transformers():
                return len(self._asking.ask([(request, clip)])["input_ids"][0])

        return fitted(clip, self.policy, room=self._context.room, length_with=length_with)

    def _group(self, clip: Clip) -> Hashable:
        if self._alike is None:
            return clip.frames.shape
        return len(clip.frames) if "length" in self._alike else None

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
        """Results of a batch; one that fails is split until each failure has its own video."""
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
        """Results of a batch with prompts that are too long: those with fewer frames if `fit` is set."""
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
        if not self._selects:
            return self._caption_text_by_text(batch)
        model, ids, mask = self._read(batch)
        lengths = mask.sum(-1).tolist()
        if not self._exact:
            self._tokens_per_frame = max(1, max(lengths) // max(map(len, _frames(batch.items))))
        thoughts = [self._budgets.for_prompt(one) for one in ids[:, -LONGEST_MARK:].tolist()]
        rows = [row for index, job in enumerate(batch.items) for row in rows_of(job, index, thoughts[index])]
        written = write(model, rows, prompt_ids=ids, prompt_mask=mask, eos_ids=self._eos_ids, text_of=self._text_of)
        return results_of(batch.items, lengths, written)

    def _caption_text_by_text(self, batch: _Batch) -> list[CaptionResult]:
        """The same where the model's cache cannot be selected from: each text on a prompt of its own."""
        if len(batch.items) > 1:
            return [result for part in batch.parts(1) for result in self._answer(part)]
        [job] = batch.items
        inputs = batch.prepared()
        self._check_lengths(batch, inputs["attention_mask"])
        lengths = inputs["attention_mask"].sum(-1).tolist()
        written = []
        thought = self._budgets.for_prompt(inputs["input_ids"][0, -LONGEST_MARK:].tolist())
        for row in rows_of(job, 0, thought):
            model = CachedContinuation.read(self._model, inputs)
            written += write(
                model, [row], prompt_ids=inputs["input_ids"], prompt_mask=inputs["attention_mask"],
                eos_ids=self._eos_ids, text_of=self._text_of,
            )  # fmt: skip
        return results_of([job], lengths, written)

    def _read(self, batch: _Batch) -> tuple[CachedContinuation, torch.Tensor, torch.Tensor]:
        """Prefill the prompts of a batch and free its pixels; returns the prompts' tokens and mask too."""
        inputs = batch.prepared()
        self._check_lengths(batch, inputs["attention_mask"])
        if self._vision is not None:
            inputs = self._vision.in_place_of_pixels(inputs, _frames(batch.items), later=_frames(batch.later()))
        read = CachedContinuation.read(self._model, inputs, carried=self._carried)
        return read, inputs["input_ids"], inputs["attention_mask"]

    def _check_lengths(self, batch: _Batch, mask: torch.Tensor) -> None:
        """Reject prompts that are too long for the model.

        Raises:
            TooLongError: names them.
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
        """The model's inputs for these jobs; called in any thread. A processor is used by one thread at a time: its
        tokenizer is reconfigured for each call."""
        with self._preparing, self._clocks["prepare"], torch.inference_mode():
            return self._inputs(jobs)

    def _inputs(self, batch: Sequence[Job]) -> Mapping[str, Any]:
        """What the processor makes of a batch, left-padded, on the model's device.

        Where the features of a repeated clip can be shared, its pixels stand there once.
        """
        with quiet_transformers():
            made = self._asking.ask(_shown(batch)) if self._alike is None else self._made_one_by_one(batch)
        placed = {name: self._placed(name, value) for name, value in made.items()}
        return JoinedInputs(placed, made.rows) if isinstance(made, JoinedInputs) else placed

    def _made_one_by_one(self, batch: Sequence[Job]) -> JoinedInputs:
        first = [*places(_frames(batch)).values()]
        processor = self._processor if len(first) == len(batch) else remembering(self._processor)
        parts = [self._asking.ask([shown], processor=processor) for shown in _shown(batch)]
        return joined(parts, first=None if self._vision is None else first, pad_id=self._pad_id)

    def _found_alike(self) -> tuple[str, ...] | None:
        """What clips of a batch must have in common, of the processor alone; None: they must be of one shape."""
        shown = trial_requests(self.policy)
        try:
            with quiet_transformers(), torch.inference_mode():
                self._asking.settle(self._model, shown[0])
                return found_alike(
                    lambda numbers: self._asking.ask([shown[number] for number in numbers]),
                    lambda number: self._asking.ask([shown[number]]),
                    pad_id=self._pad_id,
                )
        except Exception:  # a processor's real errors show when a clip is captioned
            return None

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
    """Assign the generated texts to their requests; greedy candidates are copies of one text."""
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
    """The failure for a model exception with a single video."""
    if is_out_of_memory(exc):
        return Failure("out_of_memory", "the video does not fit in the memory of the device, even alone in its batch")
    return Failure("model_error", short_message(exc))


def free_memory() -> None:
    """Release cached device memory, so that a smaller batch gets it unfragmented."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _frames(jobs: Iterable[Job]) -> list[Frames]:
    return [job.clip.frames for job in jobs]


def _shown(jobs: Iterable[Job]) -> list[Shown]:
    return [(job.request, job.clip) for job in jobs]
