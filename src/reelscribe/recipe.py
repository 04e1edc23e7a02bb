"""Data-Juicer recipes: the YAML files of `dj-process --config`, as far as this operator alone can run them.

Other operators and unsupported data set descriptions are an error; settings that only concern Data-Juicer itself are
noted and ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data.base import check_regular
from .errors import DataError, SettingsError
from .operator import OPERATOR_NAME
from .runners.settings import MAX_YAML_CHARACTERS, check_names, read_yaml
from .settings import parameter_names, shown

OPERATOR_DEFAULTS = {
    "text_keys": "text_key",
    "video_key": "video_key",
    "video_special_token": "video_token",
    "image_special_token": "image_token",
    "audio_special_token": "audio_token",
    "eoc_special_token": "eoc_token",
    "np": "num_proc",
    "skip_op_error": "skip_op_error",
}
"""Top-level keys and the operator parameters they set, unless the operator's own entry does."""

READ_KEYS = ("dataset_path", "dataset", "export_path", "export_type", "process", *OPERATOR_DEFAULTS)
"""Top-level keys that are read."""

REFUSED_KEYS = {
    "generated_dataset_config": "the data set must be a file or folder",
    "validators": "rows are not validated before the run",
    "suffixes": "name one file in dataset_path",
    "load_dataset_kwargs": "files are read as they are",
    "export_shard_size": "the output is one file",
    "encrypt_before_export": "the output would not be encrypted",
    "decrypt_after_reading": "the input must not be encrypted",
}
"""Unsupported top-level keys that would change the result, and why they are rejected; harmless if empty, 0 or false."""

IGNORED_PARAMETERS = (
    "memory", "mem_required", "cpu_required", "gpu_required", "num_cpus", "num_gpus", "runtime_env",
    "ray_execution_mode", "turbo", "batch_mode", "adaptive_batching", "auto_op_parallelism", "work_dir", "index_key",
    "image_key", "audio_key", "image_bytes_key", "system_key", "instruction_key", "query_key", "response_key",
    "history_key", "input_columns", "output_columns",
)  # fmt: skip
"""Parameters of every Data-Juicer operator that have no meaning here."""


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe."""

    dataset_path: str
    """The input."""
    export_path: str
    """The output."""
    parameters: dict[str, Any]
    """The operator's parameters."""
    notes: list[str] = field(default_factory=list)
    """Notes on ignored keys, for the user."""


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        DataError: the file cannot be read, or is not YAML.
        SettingsError: it requests something unsupported; the message names it.
    """
    check_regular(Path(path), role="recipe")
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_YAML_CHARACTERS + 1)
    except (OSError, ValueError) as exc:
        raise DataError(f"cannot read the recipe {str(path)!r}: {getattr(exc, 'strerror', None) or exc}") from exc
    try:
        values = read_yaml(text)
    except SettingsError as exc:
        raise DataError(f"the recipe {str(path)!r} {exc}") from exc
    if not isinstance(values, Mapping):
        raise SettingsError(f"the recipe {str(path)!r} must be a mapping; got {type(values).__name__}")
    return parse_recipe(values)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """The content of a recipe, from its values.

    Raises:
        SettingsError: it requests something unsupported; the message names it.
    """
    _check_keys(values)
    own, notes = _own_parameters(_operator_entry(values.get("process")))
    return Recipe(
        dataset_path=_dataset_path(values),
        export_path=_export_path(values),
        parameters={**_defaults(values), **own},
        notes=[*_ignored_keys(values), *notes],
    )


def _check_keys(values: Mapping[str, Any]) -> None:
    for key, reason in REFUSED_KEYS.items():
        if values.get(key):
            raise SettingsError(f"the recipe sets {key} to {shown(values[key])}, which is not supported: {reason}")
    for path in ("dataset_path", "export_path"):
        if "\0" in str(values.get(path)):
            raise SettingsError(f"{path} contains a character that no path can contain; got {shown(values[path])}")
    for key in values:
        close = difflib.get_close_matches(str(key), READ_KEYS, n=1, cutoff=0.9)
        if close and key not in READ_KEYS:
            raise SettingsError(f"unknown recipe key {shown(key)}; did you mean {close[0]}?")


def _ignored_keys(values: Mapping[str, Any]) -> list[str]:
    ignored = [str(key) for key in values if key not in READ_KEYS and key not in REFUSED_KEYS]
    return [f"keys of the recipe that are not used here: {', '.join(ignored)}"] if ignored else []


def _operator_entry(process: Any) -> Mapping[str, Any]:
    """The parameters of this operator, which must be the only one."""
    if not isinstance(process, list) or not process:
        raise SettingsError(f"the recipe needs a list `process` that holds {OPERATOR_NAME}; got {shown(process)}")
    entries = [_entry(item) for item in process]
    others = [name for name, _ in entries if name != OPERATOR_NAME]
    if others:
        raise SettingsError(
            f"only {OPERATOR_NAME} can be run here; the recipe also contains {', '.join(dict.fromkeys(others))}"
            " (run those with dj-process, before or after)"
        )
    if len(entries) > 1:
        raise SettingsError(f"the recipe contains {OPERATOR_NAME} {len(entries)} times; only once is supported")
    return entries[0][1]


def _entry(item: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        name, parameters = next(iter(item.items()))
        if parameters is None or isinstance(parameters, Mapping):
            return str(name), parameters or {}
    raise SettingsError(f"each item of `process` must be an operator's name with its parameters; got {shown(item)}")


def _own_parameters(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The parameters to pass on, and a note on ignored ones."""
    names = [*parameter_names(), "workers", *IGNORED_PARAMETERS]
    check_names(entry, names, what=f"{OPERATOR_NAME} has no parameter")
    ignored = [name for name in entry if name in IGNORED_PARAMETERS]
    own = {name: value for name, value in entry.items() if name not in ignored}
    if own.get("num_proc") == -1:  # Data-Juicer's value for "automatic"
        del own["num_proc"]
    if "workers" in own:  # the operator's name in Data-Juicer, where num_proc is something else
        own["num_proc"] = own.pop("workers")
    notes = [f"parameters of {OPERATOR_NAME} that are not used here: {', '.join(ignored)}"] if ignored else []
    return own, notes


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for every operator from the top level of the recipe."""
    found = {name: values[key] for key, name in OPERATOR_DEFAULTS.items() if values.get(key) is not None}
    if found.get("num_proc") == -1:  # Data-Juicer's value for "automatic"
        del found["num_proc"]
    text_keys = found.get("text_key")
    if isinstance(text_keys, list) and text_keys:
        found["text_key"] = text_keys[0]  # as Data-Juicer does
    return found


def _dataset_path(values: Mapping[str, Any]) -> str:
    """The one local path of `dataset_path` or `dataset`."""
    path, dataset = values.get("dataset_path"), values.get("dataset")
    if dataset:
        if path:
            raise SettingsError("the recipe has both dataset_path and dataset; remove one")
        return _path_of_config(dataset)
    if not isinstance(path, str) or not path:
        raise SettingsError(f"the recipe needs a dataset_path; got {shown(path)}")
    return path


def _path_of_config(dataset: Any) -> str:
    configs = dataset.get("configs") if isinstance(dataset, Mapping) else dataset
    extra = sorted(map(str, set(dataset) - {"configs"})) if isinstance(dataset, Mapping) else []
    if extra:
        raise SettingsError(f"the recipe sets dataset.{extra[0]}, which is not supported")
    if not isinstance(configs, list) or len(configs) != 1 or not isinstance(configs[0], Mapping):
        raise SettingsError(f"dataset.configs must hold one entry with a type and a path; got {shown(configs)}")
    config = dict(configs[0])
    kind, path, _ = config.pop("type", "local"), config.pop("path", None), config.pop("weight", None)
    if kind != "local" or not isinstance(path, str) or config:
        raise SettingsError(f"dataset.configs supports only `type: local` and a `path` here; got {shown(configs[0])}")
    return path


def _export_path(values: Mapping[str, Any]) -> str:
    path, kind = values.get("export_path"), values.get("export_type")
    if not isinstance(path, str) or not path:
        raise SettingsError(f"the recipe needs an export_path; got {shown(path)}")
    if kind and f".{kind}" not in Path(path).suffixes:
        raise SettingsError(f"export_type is {shown(kind)}, but the suffix of export_path decides; it is {shown(path)}")
    return path
