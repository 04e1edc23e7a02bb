"""The operator: plan what to ask for each sample, run the pipe, put the captions into new samples.

`plan` and `finish` are pure; the pipe between them is reading (video/) and captioning (models/). Every runner drives
this one class with another source and sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, validate_call

from .answering.selection import SELECTORS
from .errors import FailedSamplesError, SettingsError
from .models import backend_of, choose_backend, load_captioner, size_options, spelled, understood
from .models.captioner import (
    DEFAULT_MODEL,
    DEFAULT_THINKING_TOKENS,
    SERVED_MODEL,
    Captioner,
    ModelSpec,
    Named,
    ThinkingSettings,
    generation_config,
)
from .pipeline import Results, run_pipe
from .printable import logger
from .rows.asks import Ask
from .rows.columns import (
    batch_fields,
    batch_to_rows,
    check_types,
    fields_until,
    is_table,
    output_features,
    rows_to_batch,
)
from .rows.data_juicer_rows import DataJuicerRows
from .rows.fields import FieldNames
from .rows.outcome import RowOutcome
from .rows.plan import Planner
from .rows.tokens import SpecialTokens
from .stores import AnyPath, located
from .timing import StageTimes
from .types import Failure, Sample, TimeWindow
from .video.frames.moments import FramePolicy, FrameSettings
from .video.processes.clip_stream import WorkerPool
from .video.reader import ReadLimits

OPERATOR_NAME = "video_captioning_from_vlm_mapper"
DEFAULT_PROMPT = "Describe the input video in 1-2 sentences."
DEFAULT_BATCH_SIZE = 100
DEFAULT_LIMITS = ReadLimits()

log = logger(__name__)

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


def _known_selector(mode: str) -> str:
    if mode not in SELECTORS:
        raise ValueError(f"must be one of {', '.join(map(repr, SELECTORS))}")
    return mode


KeepMode = Annotated[str, AfterValidator(_known_selector)]


class VideoCaptioningFromVLMMapper:
    """Writes captions for the videos of each sample with a vision-language model.

    Args:
        hf_model: VLM on the Hugging Face hub (its name, `name@revision`, or the address of its page), or a local
            folder, that accepts videos; also a LoRA or another adapter of one. `reelscribe/shapes` is the bundled
            demonstration model. Behind a server that serves one model it may be left out.
        enable_vllm: run the model with vLLM instead of transformers.
        caption_num: how many candidate captions to generate for each video (M).
        keep_candidate_mode: `random_any` keeps a random candidate, `similar_one_simhash` the one most similar to the
            original caption, `all` keeps all.
        keep_original_sample: whether the original sample stays in the output.
        prompt: one prompt for all samples; None or empty means "Describe the input video in 1-2 sentences."
        prompt_key: field that holds a sample's own prompt; where its value is not a string, `prompt` is used.
        model_params: parameters for loading the model.
        sampling_params: generation settings, e.g. `{'temperature': 0.9, 'top_p': 0.95}`.
        text_key: field that holds the text.
        video_key: field that holds the list of videos.
        system_prompt: system message for every request.
        caption_key: also write the kept captions of a generated sample, a list in video order, to this field; null on
            originals.
        failure_key: write the failure of a sample (`kind`, `message`, `video_index`), or null, to this field.
        finish_reason_key: also write why each kept caption ended (`stop`, or `length` where it was cut at the token
            limit), a list in video order, to this field; null on originals.
        reasoning_key: also write the reasoning before each kept caption, or null, a list in video order, to this field;
            null on originals.
        thinking: whether a model reasons before it answers, where its chat template has a switch for that; one without
            a switch reasons as it does.
        thinking_tokens: longest reasoning, in tokens; then it is ended, and the answer follows.
        seed: seed of everything random; together with a sample's content it fixes the sample's result.
        captioner: a `Captioner` or a `ModelSpec` to use instead of `hf_model`.
        backend: what runs the model: `hf` (transformers), `vllm`, `server`, `scripted`, or a back end that an installed
            package brings; None: `server` where `model_params` holds `base_url`, else `vllm` or `hf` by `enable_vllm`.
        video_token: marks a video in the text.
        image_token: marks an image in the text.
        audio_token: marks a sound in the text.
        eoc_token: ends a chunk of the text.
        fps: frames to sample per second of video; None: the model's own rate.
        num_frames: sample this many frames instead, evenly over the video.
        min_frames: fewest frames to sample with `fps`.
        max_frames: most frames to sample with `fps`.
        min_pixels: smallest frame shown to the model, in pixels (height x width).
        max_pixels: largest frame shown to the model, in pixels (height x width).
        time_tolerance_seconds: take a frame up to this many seconds from its moment where that is cheaper to decode;
            None, 0: the very frames.
        pixel_aspect: `stored` shows every stored pixel as a square, `display` in the shape that the file gives it;
            None: `stored`.
        tone_map: whether HDR video (PQ and HLG) is shown as SDR; None: no.
        deinterlace: whether one field of an interlaced frame is shown in place of both; None: no.
        fit: whether a video whose prompt is longer than the model takes is shown with as many frames as fit; None: no,
            it fails as `too_many_tokens`.
        start_seconds: look at videos from this moment on.
        end_seconds: look at videos up to this moment.
        start_key: field with a sample's own `start_seconds` (a number, or a list with one a video).
        end_key: field with a sample's own `end_seconds`.
        video_root: folder that relative video paths are relative to; None: the current one.
        max_source_seconds: a longer video fails as `too_long`.
        max_source_pixels: a video with larger frames (height x width) fails as `too_large`.
        max_source_frames: a video with more frames fails as `too_long`.
        max_source_bytes: a larger file fails as `too_large`; None: no limit.
        max_read_seconds: a video that takes longer to read, twice, fails as `timeout`.
        max_read_memory_mib: a video whose reading takes more memory (MiB), twice, fails as `out_of_memory`; Linux only.
        media_root: folder outside of which no file is read (`not_allowed`), links resolved; None: anywhere.
        allow_remote: whether videos at `https://`, `s3://`, `gs://` and `hf://` addresses are read; otherwise they
            fail as `not_allowed`.
        allow_images: whether a still picture (JPEG, PNG, WebP, BMP, TIFF, AVIF, JPEG 2000, PNM) is a clip of one frame;
            otherwise it fails as `not_allowed`.
        video_cache: folder where videos at addresses are kept; None: they are not kept.
        video_cache_mib: most MiB that are kept there; what was unused for longest goes first.
        batch_size: samples handed over at a time by `run`, and the most videos in one batch of the model.
        num_proc: processes that read videos; None: two, and more while the model waits for clips, up to the number of
            cores.
        prefetch_mib: most MiB of frames that are read, or being read, before the model takes them; None: 128 for each
            process that reads.
        accelerator: device of the model: `cpu`, `cuda`, `mps`; None: the best there is.
        skip_op_error: if false, a batch with a failed sample raises `FailedSamplesError` after it is done.

    Raises:
        pydantic.ValidationError: a value of the wrong type or out of range (it is a `ValueError`).
        SettingsError: values that do not go together, unknown sampling settings.
    """

    @validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    def __init__(
        self,
        hf_model: str = DEFAULT_MODEL,
        enable_vllm: bool = False,
        caption_num: PositiveInt = 1,
        keep_candidate_mode: KeepMode = "random_any",
        keep_original_sample: bool = True,
        prompt: str | None = None,
        prompt_key: str | None = None,
        model_params: dict[str, Any] | None = None,
        sampling_params: dict[str, Any] | None = None,
        *,
        text_key: str = "text",
        video_key: str = "videos",
        system_prompt: str | None = None,
        caption_key: str | None = None,
        failure_key: str | None = None,
        finish_reason_key: str | None = None,
        reasoning_key: str | None = None,
        thinking: Literal["off", "on"] = "off",
        thinking_tokens: PositiveInt = DEFAULT_THINKING_TOKENS,
        seed: int = 0,
        captioner: Any = None,
        backend: str | None = None,
        video_token: str = SpecialTokens.video,
        image_token: str = SpecialTokens.image,
        audio_token: str = SpecialTokens.audio,
        eoc_token: str = SpecialTokens.eoc,
        fps: PositiveFloat | None = None,
        num_frames: PositiveInt | None = None,
        min_frames: PositiveInt | None = None,
        max_frames: PositiveInt | None = None,
        min_pixels: PositiveInt | None = None,
        max_pixels: PositiveInt | None = None,
        time_tolerance_seconds: Seconds | None = None,
        pixel_aspect: Literal["stored", "display"] | None = None,
        tone_map: bool | None = None,
        deinterlace: bool | None = None,
        fit: bool | None = None,
        start_seconds: Seconds | None = None,
        end_seconds: Seconds | None = None,
        start_key: str = "start_seconds",
        end_key: str = "end_seconds",
        video_root: str | None = None,
        max_source_seconds: PositiveFloat = DEFAULT_LIMITS.max_duration_seconds,
        max_source_pixels: PositiveInt = DEFAULT_LIMITS.max_frame_pixels,
        max_source_frames: PositiveInt = DEFAULT_LIMITS.max_frames,
        max_source_bytes: PositiveInt | None = None,
        max_read_seconds: PositiveFloat = DEFAULT_LIMITS.max_read_seconds,
        max_read_memory_mib: PositiveInt = DEFAULT_LIMITS.max_memory_bytes >> 20,
        media_root: str | None = None,
        allow_remote: bool = False,
        allow_images: bool = False,
        video_cache: str | None = None,
        video_cache_mib: PositiveInt = 10240,
        batch_size: PositiveInt | None = None,
        num_proc: PositiveInt | None = None,
        prefetch_mib: PositiveInt | None = None,
        accelerator: Literal["cpu", "cuda", "mps"] | None = None,
        skip_op_error: bool = True,
    ) -> None:
        self.parameters: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        """The plain values this operator was built from (and a live captioner, if one was given)."""
        self.generation = generation_config(sampling_params)
        self.thinking = ThinkingSettings(on=thinking == "on", tokens=thinking_tokens)
        self.frames = FrameSettings(
            fps, num_frames, min_frames, max_frames, min_pixels, max_pixels, time_tolerance_seconds,
            pixel_aspect, tone_map, deinterlace, fit,
        )  # fmt: skip
        names = FieldNames(
            text_key=text_key,
            video_key=video_key,
            prompt_key=prompt_key,
            window_keys=(start_key, end_key),
            caption_key=caption_key,
            failure_key=failure_key,
            finish_reason_key=finish_reason_key,
            reasoning_key=reasoning_key,
            keep_original=keep_original_sample,
            tokens=SpecialTokens(video=video_token, image=image_token, audio=audio_token, eoc=eoc_token),
        )
        ask = Ask(  # 0036: the operator of the contract is a run with one unnamed ask
            prompt=prompt or DEFAULT_PROMPT,
            system_prompt=system_prompt,
            generation=self.generation,
            num_candidates=caption_num,
            keep=keep_candidate_mode,
        )
        self.planner = Planner(
            form=DataJuicerRows(names, video_key),
            asks=(ask,),
            seed=seed if self.generation.seed is None else self.generation.seed,
            window=TimeWindow(start_seconds, end_seconds),
        )
        """The rules for rows: what to ask, and what becomes of the answers."""
        _check_distinct(
            text_key=text_key,
            video_key=video_key,
            caption_key=caption_key,
            failure_key=failure_key,
            finish_reason_key=finish_reason_key,
            reasoning_key=reasoning_key,
        )
        self.limits = ReadLimits(
            max_frame_pixels=max_source_pixels,
            max_duration_seconds=max_source_seconds,
            max_frames=max_source_frames,
            max_bytes=max_source_bytes,
            max_read_seconds=max_read_seconds,
            max_memory_bytes=max_read_memory_mib << 20,
            media_root=Path(media_root).absolute() if media_root is not None else None,
            allow_remote=allow_remote,
            allow_images=allow_images,
            cache_folder=Path(video_cache).absolute() if video_cache is not None else None,
            max_cache_bytes=video_cache_mib << 20,
        )
        self.video_root: AnyPath | None = located(video_root) if video_root is not None else None
        self.pool = WorkerPool(num_proc, max_bytes_in_flight=prefetch_mib and prefetch_mib << 20)
        """The processes that read videos; started at the first use."""
        self.batch_size = batch_size
        self.skip_op_error = skip_op_error
        self.failures: list[tuple[int, int, Failure]] = []
        """Failures of the last batch or run: (sample index, video index, failure)."""
        self._captioner: Captioner | None = None
        self._own_captioner = True
        self.spec = self._choose_model(captioner)

    def _choose_model(self, captioner: Any) -> ModelSpec | None:
        """The spec of the model to load, or None where the caller gave a living captioner."""
        given = self.parameters
        if captioner is None:
            options = dict(given["model_params"] or {})
            backend = choose_backend(options, enable_vllm=given["enable_vllm"], backend=given["backend"])
            given["enable_vllm"], given["backend"] = spelled(backend, options)
            spec = ModelSpec(backend, given["hf_model"], options)
            if given["hf_model"] is DEFAULT_MODEL:  # it was left out
                spec = replace(spec, model=backend_of(spec).default_model)
            spec = understood(spec)
            given["hf_model"] = spec.model
            given["model_params"] = spec.options if spec.options != options else given["model_params"]
            return self._with_operator_settings(spec)
        if given["model_params"] is not None or given["enable_vllm"] or given["backend"] is not None:
            raise SettingsError(
                "captioner replaces the model: leave out model_params, enable_vllm and backend, or captioner"
            )
        if isinstance(captioner, ModelSpec):
            given["captioner"] = understood(captioner)
            return self._with_operator_settings(given["captioner"])
        if not isinstance(captioner, Captioner):
            raise SettingsError(f"captioner must be a Captioner or a ModelSpec; got {type(captioner).__name__}")
        if self.thinking.on:
            raise SettingsError(
                "captioner is a living one, which thinking cannot change: leave out thinking (--thinking)"
            )
        if self.frames.fit:
            raise SettingsError("fit (--fit) is for models that are loaded here: a living captioner shows what it gets")
        self._captioner, self._own_captioner = captioner, False
        return None

    def _with_operator_settings(self, spec: ModelSpec) -> ModelSpec:
        options = dict(spec.options)
        if self.parameters["accelerator"] is not None:
            options.setdefault("device", self.parameters["accelerator"])
        if self.batch_size is not None:
            options = {**size_options(spec, self.batch_size), **options}
        generation = self.generation if self.parameters["sampling_params"] is not None else spec.generation
        frames = self.frames if self.frames != FrameSettings() else spec.frames
        thinking = self.thinking if self.thinking != ThinkingSettings() else spec.thinking
        return replace(spec, options=options, generation=generation, frames=frames, thinking=thinking)

    @property
    def captioner(self) -> Captioner:
        """The captioner; the model is loaded at the first use."""
        if self._captioner is None:
            assert self.spec is not None
            self._captioner = load_captioner(self.spec)
        return self._captioner

    @property
    def served_model(self) -> str | None:
        """The model that its server serves, where none was named and the server was asked; else None."""
        is_open = self.spec is not None and self.spec.model == SERVED_MODEL
        return self._captioner.model if is_open and isinstance(self._captioner, Named) else None

    @property
    def policy(self) -> FramePolicy | None:
        """What frames are read for the model; None: it wants none."""
        policy = self.captioner.policy
        if policy is None or self.spec is not None:
            return policy
        return policy.override(self.frames)

    def start(self) -> None:
        """Load the model, and the processes that read videos meanwhile, where the model looks at videos.

        Raises:
            ModelError: the model cannot be loaded.
        """
        if self._captioner is None and self.spec is not None and backend_of(self.spec).reads_videos:
            self.pool.start()
        _ = self.captioner

    def close(self) -> None:
        """End the processes that read, and free the model, if this operator loaded it."""
        self.pool.close()
        if self._own_captioner and self._captioner is not None:
            self._captioner.close()
            self._captioner = None

    def __getstate__(self) -> dict[str, Any]:
        return self.parameters

    def __setstate__(self, parameters: dict[str, Any]) -> None:
        type(self).__init__(self, **parameters)

    # running

    def run_stream(
        self,
        rows: Iterable[Sample],
        emit: Callable[[RowOutcome], None],
        *,
        results: Results | None = None,
        first_row: int = 0,
    ) -> StageTimes:
        """Caption a stream of rows; `emit` is called once a row, in input order, one at a time, from any thread.

        Args:
            rows: taken in a thread of their own, as far ahead as there is room.
            emit: takes what each row became.
            results: what was answered before, and where answers are kept.
            first_row: index of the first of these rows in the input.

        Returns:
            How long each stage was at work.
        """
        return run_pipe(
            self, rows, lambda outcome: emit(self.planner.placed(outcome)), results=results, first_row=first_row
        )

    def process_batched(self, samples: Any, rank: int | None = None) -> Any:
        """Caption one batch.

        Args:
            samples: a dict of equally long lists, or an Arrow table.
            rank: index of the calling process, as `datasets.map(with_rank=True)` gives it; picks the CUDA device.

        Returns:
            A batch of the same kind with the output samples; empty lists where nothing comes out.

        Raises:
            FailedSamplesError: a sample failed and `skip_op_error` is false.
            SettingsError: a field to be written is a column of another type.
        """
        self._place(rank)
        if is_table(samples):
            check_types(samples.schema, self.planner.form.new_fields())
        rows = batch_to_rows(samples)
        outcomes: list[RowOutcome] = []
        self.run_stream(rows, outcomes.append)
        self.failures = [(o.row, video, failure) for o in outcomes for video, failure in o.failures]
        made, new_fields = [sample for o in outcomes for sample in o.samples], self.planner.form.new_fields()
        extra = [name for name, kind in new_fields.items() if kind != "text"]
        fields = batch_fields(samples, made=made, extra=extra)
        batch = rows_to_batch(made, fields, like=samples, new_fields=new_fields)
        self._report(batch)
        return batch

    def _place(self, rank: int | None) -> None:
        """Tell the model to come which process of a parallel `map` it is for, so that each takes its own device.

        Raises:
            SettingsError: a second process would start a second engine on the same devices.
        """
        if rank is None or self._captioner is not None or self.spec is None:
            return
        row = backend_of(self.spec)
        if row.one_per_machine and rank > 0:
            raise SettingsError(
                f"{self.spec.backend} uses all visible devices from one process, and this is number {rank + 1}: give "
                "map num_proc=1"
            )
        if row.rank_option is not None:
            self.spec = replace(self.spec, options={row.rank_option: rank, **self.spec.options})

    def _report(self, batch: Any) -> None:
        for sample, video, failure in self.failures:
            log.warning("sample %d, video %d: %s: %s", sample, video, failure.kind, failure.message)
        if self.failures and not self.skip_op_error:
            sample, video, failure = self.failures[0]
            raise FailedSamplesError(
                f"{len({row for row, _, _ in self.failures})} samples failed, first sample {sample}, video {video}: "
                f"{failure.kind}: {failure.message}",
                batch=batch,
            )

    def run(self, dataset: Any) -> Any:
        """Caption a whole data set and give back one of the same kind.

        Args:
            dataset: a `datasets.Dataset`, `IterableDataset` or `DatasetDict`, a list of dicts, or a dict of lists.

        Raises:
            SettingsError: `prompt_key` is a field that no row has.
        """
        if isinstance(dataset, Mapping) and any(hasattr(part, "map") for part in dataset.values()):
            return self._run_splits(dataset)
        if isinstance(dataset, Mapping):
            self.check_fields(dataset.keys())
            return self.process_batched(dict(dataset))
        if isinstance(dataset, list):
            return self._run_rows(dataset)
        self.check_fields(_fields_of(dataset, until=self.planner.names.prompt_key))
        return self._run_dataset(dataset)

    def _run_dataset(self, dataset: Any) -> Any:
        failures: list[tuple[int, int, Failure]] = []

        def step(batch: Any, indices: list[int]) -> Any:
            out = self.process_batched(batch if is_table(batch) else dict(batch))
            failures.extend((int(indices[row]), video, failure) for row, video, failure in self.failures)
            self.failures = failures
            return out

        options = _map_options(dataset, self.planner)
        if options and not len(dataset):
            self.failures = failures
            return type(dataset).from_dict({name: [] for name in options["features"]}, features=options["features"])
        mapped = dataset.map(
            step,
            batched=True,
            with_indices=True,
            batch_size=self.batch_size or DEFAULT_BATCH_SIZE,
            **options,
        )
        self.failures = failures
        return mapped

    def _run_splits(self, splits: Mapping[str, Any]) -> Any:
        """Every split of a `DatasetDict`; failures count rows over the splits in their order."""
        kind: Any = type(splits)
        wanted = self.planner.names.prompt_key
        self.check_fields({name for split in splits.values() for name in _fields_of(split, until=wanted)})
        done, failures, first = {}, [], 0
        for name, split in splits.items():
            done[name] = self._run_dataset(split)
            failures += [(first + row, video, failure) for row, video, failure in self.failures]
            first += len(split) if hasattr(split, "__len__") else 0
        self.failures = failures
        return kind(done)

    def _run_rows(self, rows: list[Sample]) -> list[Sample]:
        self.check_fields({key for row in rows for key in row})
        outcomes: list[RowOutcome] = []
        self.run_stream(rows, outcomes.append)
        self.failures = [(o.row, video, failure) for o in outcomes for video, failure in o.failures]
        samples = [sample for o in outcomes for sample in o.samples]
        self._report(samples)
        return samples

    def check_fields(self, fields: Iterable[str]) -> None:
        """Stop a run whose data set has no field `prompt_key` in any row.

        Raises:
            SettingsError: naming the field and those there are.
        """
        known, wanted = list(fields), self.planner.names.prompt_key
        if wanted is not None and known and wanted not in known:
            raise SettingsError(
                f"prompt_key is {wanted!r}, but no row has that field; there are {', '.join(sorted(known))}"
            )


def _check_distinct(**keys: str | None) -> None:
    """Stop where two fields would be one.

    Raises:
        SettingsError: naming both.
    """
    seen: dict[str, str] = {}
    for name, field in keys.items():
        if field is not None and field in seen:
            raise SettingsError(f"{name} and {seen[field]} are both {field!r}; give one of them another name")
        if field is not None:
            seen[field] = name


def _fields_of(dataset: Any, *, until: str | None) -> list[str]:
    """Fields of a data set; a streamed one that does not know them is read up to the first row with `until`."""
    if until is None or dataset.column_names:
        return list(dataset.column_names or [])
    return fields_until(until, dataset)


def _map_options(dataset: Any, planner: Planner) -> dict[str, Any]:
    """Options of `Dataset.map` that keep the types of the fields when the first batch is all null."""
    if not hasattr(dataset, "cache_files"):  # a streamed data set has no cache and may not know its features
        return {}
    features = output_features(dataset.features, planner.form.new_fields())
    return {"load_from_cache_file": False, "features": features, "remove_columns": dataset.column_names}
