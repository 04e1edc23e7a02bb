"""The operator inside Data-Juicer: a `Mapper` of the same name that takes the place of the built-in one.

Importing this module registers it, and fits Data-Juicer's own video code to the installed PyAV. py-data-juicer imports
it itself where this package is installed next to it (entry point group `data_juicer.ops`); `data_juicer_plugin.py` is
for recipes that name it in `custom_operator_paths`. Nothing here knows how captions are made: the work is
`operator.VideoCaptioningFromVLMMapper`'s.
"""

from __future__ import annotations

import inspect
import os
import uuid
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import operator, settings
from .data.base import writing
from .data.jsonl import encode_row
from .errors import DataError, FailedSamplesError, MissingExtraError, SettingsError
from .models import ModelSpec, backend_of, choose_backend
from .operator import DEFAULT_BATCH_SIZE, OPERATOR_NAME
from .rows.columns import batch_to_rows, output_features
from .settings import one_line

try:
    from data_juicer.ops.base_op import OPERATORS, Mapper
    from data_juicer.utils import mm_utils
    from data_juicer.utils.ray_utils import is_ray_mode
    from loguru import logger

    from . import data_juicer_pyav
except ModuleNotFoundError as exc:
    raise MissingExtraError(
        exc.name or "py-data-juicer", extra="data-juicer", purpose="the operator in Data-Juicer"
    ) from exc

BUILT_IN_ORDER = (
    "hf_model", "enable_vllm", "caption_num", "keep_candidate_mode", "keep_original_sample", "prompt", "prompt_key",
    "system_prompt", "model_params", "sampling_params",
)  # fmt: skip
"""The built-in operator's parameters, in its order."""

TOKENS = {"video_token": "video", "image_token": "image", "audio_token": "audio", "eoc_token": "eoc"}
"""Our parameter to the name of the recipe's token in Data-Juicer's `SpecialTokens`."""

DATA_JUICERS_OWN = ("num_proc", "batch_size", "accelerator", "skip_op_error")
"""Parameters that both have, read as Data-Juicer reads them."""


LEAST_AND_MOST_ACTORS = (1, None)
"""Actors of Ray without GPUs: Data-Juicer's own choice takes every core, and nothing is left to read the rows with."""


class _Operator(operator.VideoCaptioningFromVLMMapper):
    """Our operator, whose failures go to Data-Juicer's log, in the form that its summary of a run counts."""

    def _report(self, batch: Any) -> None:
        for sample, video, failure in self.failures:
            logger.error(
                f'An error occurred in {OPERATOR_NAME} when processing sample "{sample}, video {video}" -- '
                f"{failure.kind}: {failure.message} -- the other samples are not touched"
            )
        if self.failures and not self.skip_op_error:
            sample, video, failure = self.failures[0]
            raise FailedSamplesError(
                f"{len({row for row, _, _ in self.failures})} samples failed, the first with {failure.kind}: "
                f"{failure.message} (skip_op_error is false)",
                batch=batch,
            )


class VideoCaptioningFromVLMMapper(Mapper):  # type: ignore[misc]
    """Generates captions for the videos of each sample with a vision-language model that accepts videos.

    Takes the built-in operator's parameters, in its order, what every operator of Data-Juicer takes, and our own; see
    the operator page. Keys and special tokens come from the recipe where they are not given. `num_proc` is the number
    of processes of the operator, each with a model of its own; `workers` the number that read videos for one of them.
    """

    _batched_op = True
    _accelerator = "cuda"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = SIGNATURE.bind(*args, **kwargs).arguments
        values = {name: value for name, value in given.items() if value is not None}
        super().__init__(**_base_values(values))
        self.prompt_key = values.get("prompt_key")
        self._run: str | None = None
        self.operator = _build({name: value for name, value in values.items() if name in _OURS}, self)
        # Data-Juicer's wrapper turns any error into an empty batch: rows would be lost without a word where, say, the
        # model cannot be loaded. A video that fails is no error here, so what is left should stop the run.
        self.process = self.process_batched
        if is_ray_mode() and self.use_ray_actor() and not self.use_cuda() and self.use_auto_proc():
            self.num_proc = LEAST_AND_MOST_ACTORS

    @property
    def _init_kwargs(self) -> dict[str, Any]:
        """What an actor of Ray builds the operator from, and the recipe's tokens, which it would not know."""
        given: dict[str, Any] = self.__dict__["_init_kwargs"]
        return given | {name: self.operator.parameters[name] for name in TOKENS}

    @_init_kwargs.setter
    def _init_kwargs(self, given: dict[str, Any]) -> None:
        self.__dict__["_init_kwargs"] = given

    def process_batched(self, samples: Any, rank: int | None = None, context: bool = False) -> Any:  # noqa: ARG002
        """Caption one batch.

        Args:
            samples: a dict of equally long lists, or an Arrow table.
            rank: index of the calling process; picks the CUDA device.
            context: taken because Data-Juicer may give it; videos are read here, not handed on.

        Raises:
            FailedSamplesError: a sample failed and `skip_op_error` is false; the text names a file with the batch.
        """
        try:
            made = self.operator.process_batched(samples, rank=rank)
        except FailedSamplesError as exc:
            raise FailedSamplesError(f"{exc}{self._keep(exc.batch)}", batch=exc.batch) from exc
        if self._run is not None and not self.skip_op_error:  # a later batch may stop the run
            self._keep(made)
        return made

    def _keep(self, batch: Any) -> str:
        """Add what was made of a batch, originals and all, to a file in the working directory; say where."""
        if self.work_dir is None:
            return ""
        path = Path(self.work_dir) / f"{self._kept}_{os.getpid()}.jsonl"
        try:
            lines = [encode_row(row, number=number, path=path) for number, row in enumerate(batch_to_rows(batch))]
            with writing(path), path.open("ab") as file:
                file.writelines(lines)
        except DataError as exc:
            return f"; what was done of its batch could not be kept: {exc}"
        return f"; what was done of its batch, and before it, is in {path}"

    @property
    def _kept(self) -> str:
        """How the names begin of files that hold what was done of a run that stopped."""
        return f"{OPERATOR_NAME}_stopped" + ("" if self._run is None else f"_{self._run}")

    def run(self, dataset: Any, *, exporter: Any = None, tracer: Any = None) -> Any:
        """Caption a data set, as the default executor asks for.

        Args:
            dataset: rows.
            exporter: taken because Data-Juicer gives it.
            tracer: not used: it compares rows by their place before and after, and here rows are added.

        Raises:
            SettingsError: `prompt_key` is a field that no row has.
        """
        self.operator.check_fields(dataset.column_names)
        if tracer is not None:
            logger.info(f"{OPERATOR_NAME} adds rows, so it is not traced")
        self._run = uuid.uuid4().hex[:8]
        try:
            made = super().run(self._with_fields(dataset), exporter=exporter)
            for path in Path(self.work_dir).glob(f"{self._kept}_*.jsonl") if self.work_dir is not None else ():
                path.unlink()
            return made
        finally:
            self._run = None
            self.operator.close()

    def _with_fields(self, dataset: Any) -> Any:
        """The data set with its new fields, null as yet: their types would else be those of the first batch, where all
        may be null."""
        from data_juicer.core.data import NestedDataset

        features = output_features(dataset.features, self.operator.planner.form.new_fields())
        dataset = NestedDataset(dataset)
        for name, feature in features.items():
            if name not in dataset.features:
                dataset = dataset.add_column(name, [None] * len(dataset), feature=feature)
            elif dataset.features[name] != feature:
                dataset = NestedDataset(dataset.cast_column(name, feature))
        return dataset


def _base_values(values: dict[str, Any]) -> dict[str, Any]:
    """What the base class is told: nothing that was not given, except where its default does not suit a model."""
    base = {name: value for name, value in values.items() if name in Mapper._BASE_PARAMS}
    if _takes_all_devices(values):  # from one process
        base["num_proc"] = 1
    # A task of Ray would load the model again for every block of rows.
    return {"batch_size": DEFAULT_BATCH_SIZE, "ray_execution_mode": "actor"} | base


def _takes_all_devices(values: dict[str, Any]) -> bool:
    """Whether a model with these parameters leaves no device to a second process; what is wrong with them is found
    where the operator is built."""
    spec, model_params = values.get("captioner"), values.get("model_params")
    if not isinstance(spec, ModelSpec):
        options = model_params if isinstance(model_params, dict) else {}
        enable_vllm = values.get("enable_vllm") is True
        spec = ModelSpec(choose_backend(options, enable_vllm=enable_vllm, backend=values.get("backend")), "")
    return backend_of(spec).one_per_machine


def _build(values: dict[str, Any], host: VideoCaptioningFromVLMMapper) -> _Operator:
    """Our operator, with what the recipe says of keys and tokens.

    Raises:
        SettingsError: a value that breaks a rule.
    """
    tokens = {name: getattr(mm_utils.SpecialTokens, token) for name, token in TOKENS.items()}
    own = {name: value for name, value in values.items() if name not in DATA_JUICERS_OWN}
    if "batch_size" in values:
        own["batch_size"] = values["batch_size"]
    if values.get("accelerator") != "cuda":  # Data-Juicer's default, also where there is none
        own["accelerator"] = values.get("accelerator")
    own["num_proc"] = own.pop("workers", None)
    try:
        return _Operator(**tokens | own, skip_op_error=host.skip_op_error)
    except ValidationError as exc:
        raise SettingsError(one_line(exc)) from exc


def _signature() -> inspect.Signature:
    """The built-in's parameters, ours, and those of every operator: Data-Juicer looks names up in the signature."""
    ours = _our_parameters()
    base = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint or Any)
        for name, (hint, default) in _base_parameters().items()
    }
    first = [ours.pop(name).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in BUILT_IN_ORDER]
    rest = {name: parameter for name, parameter in (base | ours).items() if name not in BUILT_IN_ORDER}
    return inspect.Signature([*first, *rest.values()])


def _our_parameters() -> dict[str, inspect.Parameter]:
    found = dict(settings.signature().parameters)
    workers = found["num_proc"].replace(name="workers")
    ours = {
        name: parameter.replace(
            annotation=parameter.annotation | None if name in TOKENS else parameter.annotation,
            default=None if name in TOKENS else parameter.default,
        )
        for name, parameter in found.items()
        if name not in DATA_JUICERS_OWN
    }
    return ours | {"workers": workers}


def _base_parameters() -> dict[str, tuple[Any, Any]]:
    """Data-Juicer's own parameters; None stands for a default that it works out itself."""
    told = {"batch_size": (int | None, None), "num_proc": (None, None), "auto_op_parallelism": (bool, True)}
    return {**Mapper._BASE_PARAMS, **told}


SIGNATURE = _signature()
_MYSELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
VideoCaptioningFromVLMMapper.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_MYSELF, *SIGNATURE.parameters.values()]
)
_OURS = {*_our_parameters(), *DATA_JUICERS_OWN}

OPERATORS.register_module(OPERATOR_NAME, VideoCaptioningFromVLMMapper, force=True)
data_juicer_pyav.adapt()
