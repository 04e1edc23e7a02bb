"""The operator: plan the requests for each sample, run the pipe, put the captions into new samples.

`plan` and `finish` are pure; the pipe between them reads (video/) and captions (models/). Every runner drives this one
class with its own source and sink.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import FailedSamplesError, SettingsError
from .models import backend_of, choose_backend, load_captioner, size_options, spelled, understood
from .models.captioner import (
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
from .settings import argument_texts, read_settings, signature
from .stores import AnyPath, located
from .timing import StageTimes
from .types import Failure, Sample, TimeWindow
from .video.frames.moments import FramePolicy, FrameSettings
from .video.processes.clip_stream import WorkerPool
from .video.reader import ReadLimits

OPERATOR_NAME = "video_captioning_from_vlm_mapper"
DEFAULT_PROMPT = "Describe the input video in 1-2 sentences."
DEFAULT_BATCH_SIZE = 100

log = logger(__name__)


class VideoCaptioningFromVLMMapper:
    """Captions the videos of each sample with a vision-language model.

    The arguments are the fields of `settings.Settings`: the nine of the contract first, the others keyword-only.

    Raises:
        pydantic.ValidationError: a value of the wrong type or out of range (it is a `ValueError`).
        SettingsError: conflicting values, or an unknown sampling parameter.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = read_settings(args, kwargs)
        self.parameters: dict[str, Any] = given.values()
        """The plain values this operator was built from (and a captioner object, if one was given)."""
        self.generation = generation_config(given.sampling_params)
        self.thinking = ThinkingSettings(on=given.thinking == "on", tokens=given.thinking_tokens)
        self.frames = FrameSettings(**given.part(FrameSettings))
        names = FieldNames(
            text_key=given.text_key,
            video_key=given.video_key,
            prompt_key=given.prompt_key,
            window_keys=(given.start_key, given.end_key),
            caption_key=given.caption_key,
            failure_key=given.failure_key,
            finish_reason_key=given.finish_reason_key,
            reasoning_key=given.reasoning_key,
            keep_original=given.keep_original_sample,
            tokens=SpecialTokens(
                video=given.video_token, image=given.image_token, audio=given.audio_token, eoc=given.eoc_token
            ),
        )
        ask = Ask(  # 0036: the operator of the contract is a run with one unnamed ask
            prompt=given.prompt or DEFAULT_PROMPT,
            system_prompt=given.system_prompt,
            generation=self.generation,
            num_candidates=given.caption_num,
            keep=given.keep_candidate_mode,
        )
        self.planner = Planner(
            form=DataJuicerRows(names, given.video_key),
            asks=(ask,),
            seed=given.seed if self.generation.seed is None else self.generation.seed,
            window=TimeWindow(given.start_seconds, given.end_seconds),
        )
        """The rules for rows: what to ask, and how to use the answers."""
        _check_distinct(
            text_key=given.text_key,
            video_key=given.video_key,
            caption_key=given.caption_key,
            failure_key=given.failure_key,
            finish_reason_key=given.finish_reason_key,
            reasoning_key=given.reasoning_key,
        )
        folders = {name: _absolute(self.parameters[name]) for name in ("media_root", "video_cache")}
        self.limits = ReadLimits(**{**given.part(ReadLimits), **folders})
        self.video_root: AnyPath | None = located(given.video_root) if given.video_root is not None else None
        self.pool = WorkerPool(given.num_proc, prefetch_bytes=given.prefetch_mib and given.prefetch_mib << 20)
        """The processes that read videos; started on first use."""
        self.batch_size = given.batch_size
        self.skip_op_error = given.skip_op_error
        self.failures: list[tuple[int, int, Failure]] = []
        """Failures of the last batch or run: (sample index, video index, failure)."""
        self._captioner: Captioner | None = None
        self._own_captioner = True
        self.spec = self._choose_model(given.captioner, is_named="hf_model" in given.model_fields_set)

    def _choose_model(self, captioner: Any, *, is_named: bool) -> ModelSpec | None:
        """The spec of the model to load, or None if the caller passed a captioner object."""
        given = self.parameters
        if captioner is None:
            options = dict(given["model_params"] or {})
            backend = choose_backend(options, enable_vllm=given["enable_vllm"], backend=given["backend"])
            given["enable_vllm"], given["backend"] = spelled(backend, options)
            spec = ModelSpec(backend, given["hf_model"], options)
            if not is_named:
                spec = replace(spec, model=backend_of(spec).default_model)
            spec = understood(spec)
            given["hf_model"] = spec.model
            given["model_params"] = spec.options if spec.options != options else given["model_params"]
            return self._with_operator_settings(spec)
        if given["model_params"] is not None or given["enable_vllm"] or given["backend"] is not None:
            raise SettingsError(
                "captioner replaces the model: omit either captioner or model_params, enable_vllm and backend"
            )
        if isinstance(captioner, ModelSpec):
            given["captioner"] = understood(captioner)
            return self._with_operator_settings(given["captioner"])
        if not isinstance(captioner, Captioner):
            raise SettingsError(f"captioner must be a Captioner or a ModelSpec; got {type(captioner).__name__}")
        if self.thinking.on:
            raise SettingsError("thinking does not apply to a captioner object: omit thinking (--thinking)")
        if self.frames.fit:
            raise SettingsError("fit (--fit) applies only to models loaded here, not to a captioner object: omit fit")
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
        """The captioner; the model is loaded on first use."""
        if self._captioner is None:
            assert self.spec is not None
            self._captioner = load_captioner(self.spec)
        return self._captioner

    @property
    def served_model(self) -> str | None:
        """The model that the server reported, if no model was named; otherwise None."""
        is_open = self.spec is not None and self.spec.model == SERVED_MODEL
        return self._captioner.model if is_open and isinstance(self._captioner, Named) else None

    @property
    def policy(self) -> FramePolicy | None:
        """The frame policy for the model; None: it needs no frames."""
        policy = self.captioner.policy
        if policy is None or self.spec is not None:
            return policy
        return policy.override(self.frames)

    def start(self) -> None:
        """Load the model and meanwhile start the processes that read videos, if the model needs frames.

        Raises:
            ModelError: the model cannot be loaded.
        """
        if self._captioner is None and self.spec is not None and backend_of(self.spec).reads_videos:
            self.pool.start()
        _ = self.captioner

    def close(self) -> None:
        """Stop the reading processes, and free the model if this operator loaded it."""
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
        """Caption a stream of rows; `emit` is called once per row, in input order, one at a time, from any thread.

        Args:
            rows: read in a separate thread, as far ahead as the limits allow.
            emit: receives the outcome of each row.
            results: earlier answers, and the store for new ones.
            first_row: index of the first of these rows in the input.

        Returns:
            How long each stage was busy.
        """
        return run_pipe(
            self, rows, lambda outcome: emit(self.planner.placed(outcome)), results=results, first_row=first_row
        )

    def process_batched(self, samples: Any, rank: int | None = None) -> Any:
        """Caption one batch.

        Args:
            samples: a dict of equally long lists, or an Arrow table.
            rank: index of the calling process, as passed by `datasets.map(with_rank=True)`; selects the CUDA device.

        Returns:
            A batch of the same kind with the output samples; empty lists if there are none.

        Raises:
            FailedSamplesError: a sample failed and `skip_op_error` is false.
            SettingsError: a field to be written exists with another type.
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
        """Set the model's rank in a parallel `map`, so that each process uses its own device.

        Raises:
            SettingsError: a second process would start a second engine on the same devices.
        """
        if rank is None or self._captioner is not None or self.spec is None:
            return
        row = backend_of(self.spec)
        if row.one_per_machine and rank > 0:
            raise SettingsError(
                f"{self.spec.backend} uses all visible devices from one process, but this is process {rank + 1}: call "
                "map with num_proc=1"
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
        """Caption a whole data set and return one of the same kind.

        Args:
            dataset: a `datasets.Dataset`, `IterableDataset` or `DatasetDict`, a list of dicts, or a dict of lists.

        Raises:
            SettingsError: no row has the field `prompt_key`.
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
        """Caption every split of a `DatasetDict`; failures number rows across the splits in order."""
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
        """Reject a data set in which no row has the field `prompt_key`.

        Raises:
            SettingsError: names the missing field and the existing ones.
        """
        known, wanted = list(fields), self.planner.names.prompt_key
        if wanted is not None and known and wanted not in known:
            raise SettingsError(
                f"prompt_key is {wanted!r}, but no row has that field; the fields are {', '.join(sorted(known))}"
            )


def _describe(operator: Any) -> None:
    """Expose the settings where editors, `help`, `inspect` and Data-Juicer look for arguments."""
    parameters = signature().parameters
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    operator.__init__.__signature__ = inspect.Signature([itself, *parameters.values()])
    operator.__init__.__annotations__ = {name: one.annotation for name, one in parameters.items()}
    operator.__doc__ = f"{inspect.cleandoc(operator.__doc__)}\n\nArgs:\n{argument_texts()}\n"


_describe(VideoCaptioningFromVLMMapper)


def _absolute(folder: str | None) -> Path | None:
    return None if folder is None else Path(folder).absolute()


def _check_distinct(**keys: str | None) -> None:
    """Reject two parameters that name the same field.

    Raises:
        SettingsError: names both.
    """
    seen: dict[str, str] = {}
    for name, field in keys.items():
        if field is not None and field in seen:
            raise SettingsError(f"{name} and {seen[field]} are both {field!r}; give one of them another name")
        if field is not None:
            seen[field] = name


def _fields_of(dataset: Any, *, until: str | None) -> list[str]:
    """Fields of a data set; if a streamed one does not declare them, it is read up to the first row with `until`."""
    if until is None or dataset.column_names:
        return list(dataset.column_names or [])
    return fields_until(until, dataset)


def _map_options(dataset: Any, planner: Planner) -> dict[str, Any]:
    """Options of `Dataset.map` that keep field types even if the first batch is all null."""
    if not hasattr(dataset, "cache_files"):  # a streamed data set has no cache and may not know its features
        return {}
    features = output_features(dataset.features, planner.form.new_fields())
    return {"load_from_cache_file": False, "features": features, "remove_columns": dataset.column_names}
