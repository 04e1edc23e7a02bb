"""Model adapters such as LoRAs: where one is, which model it belongs to, and what it contains.

Reads files that peft saves; the weights are put into a model by whoever runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, ModelError
from .captioner import short_message
from .chat import resolve_model
from .names import ModelName, hub_arguments, local_folder, read_model_name

CONFIG = "adapter_config.json"
"""The file that marks a folder as an adapter."""
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Files that peft saves an adapter's weights to."""
MODEL_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
"""Names of files with a whole model's weights."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""A folder with a processor has at least one of these files."""
CHAT_TEMPLATE = "chat_template.jinja"
_OF_WORDS = re.compile(r"\b(language_model|text_model|lm_head)\b|^base_model\.model\.(model\.)?(layers|embed_tokens)\b")
"""Modules of a model that read and write tokens; the others process pictures."""
_ITS_FILES = ["adapter_*", "*.json", "*.jinja", "*.txt", "*.model"]
_FOR_FILES = ("cache_dir", "force_download", "local_files_only", "revision", "token")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, on this machine."""

    folder: Path
    """Where they are."""
    config: Mapping[str, Any]
    """The content of its `adapter_config.json`."""

    @property
    def rank(self) -> int:
        """The largest rank of a LoRA's matrices."""
        ranks = [self.config.get("r") or 1, *(self.config.get("rank_pattern") or {}).values()]
        return max(int(rank) for rank in ranks)

    def looks_and_writes(self) -> tuple[bool, bool]:
        """Whether it changes the part of the model that reads pictures, and the part that reads and writes text."""
        names = _weight_names(self.folder)
        writes = [bool(_OF_WORDS.search(name)) for name in names]
        return not all(writes), any(writes)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a model is loaded from."""

    base: str
    """Folder, or name on the hub, of the model."""
    hub: Mapping[str, Any]
    """Which of its files to read: arguments of `from_pretrained`."""
    adapter: Adapter | None = None
    """The adapter to load into it; its folder may be the model's."""

    @property
    def is_apart(self) -> bool:
        """Whether an adapter is not in its model's folder: one that is, transformers loads by itself."""
        return self.adapter is not None and self.adapter.folder != Path(self.base).absolute()

    @property
    def processor(self) -> tuple[str, Mapping[str, Any]]:
        """Where the processor is, and how to load it: from the adapter, if it was saved with one."""
        own = self.adapter
        if own is None or not any((own.folder / name).is_file() for name in PROCESSOR_FILES):
            return self.base, self.hub
        return str(own.folder), {key: value for key, value in self.hub.items() if key not in ("revision", "subfolder")}

    @property
    def chat_template(self) -> str | None:
        """The chat template that was saved with an adapter; None: it has none."""
        path = None if self.adapter is None else self.adapter.folder / CHAT_TEMPLATE
        return path.read_text("utf-8") if path is not None and path.is_file() else None


def find_checkpoint(name: str, hub: Mapping[str, Any], *, adapter: str | None) -> Checkpoint:
    """Where the model `name` is loaded from: itself, or, for an adapter, its base model.

    Args:
        name: a bundled model, a name on the hub, or a local folder, of a model or of an adapter.
        hub: arguments of `from_pretrained` that say which files to read.
        adapter: an adapter to load into the model, a folder or a name on the hub.

    Raises:
        ModelError: an adapter does not exist, names no base model, or there are two.
        SettingsError: `adapter` is not a name.
    """
    folder = resolve_model(name)
    own = _adapter_of(folder, hub)
    if own is None:
        return Checkpoint(folder, hub, None if adapter is None else _named_adapter(adapter, hub))
    if adapter is not None:
        raise ModelError(
            f"it is an adapter, or contains one ({CONFIG}), and model_params names another ({adapter!r}); only one "
            "can be used"
        )
    if _is_whole(Path(folder)):
        return Checkpoint(folder, hub, own)
    base, base_hub = _base_of(own, hub if local_folder(folder) else {**hub, "revision": None})
    if _adapter_of(base, base_hub) is not None:
        raise ModelError(f"it is an adapter of {base!r}, which itself contains an adapter; merge those two first")
    return Checkpoint(base, base_hub, own)


def _is_whole(folder: Path) -> bool:
    """Whether a folder with an adapter also has the model."""
    files = [path.name for pattern in MODEL_WEIGHTS for path in folder.glob(pattern)]
    return (folder / "config.json").is_file() and any(not name.startswith("adapter_") for name in files)


def base_name(folder: Path, options: Mapping[str, Any]) -> ModelName | None:
    """The base model of the adapter in a folder; None: it has no adapter, or its model as well.

    Raises:
        ModelError: the adapter names none.
    """
    place = folder / str(options.get("subfolder") or "")
    if not (place / CONFIG).is_file() or _is_whole(place):
        return None
    base, hub = _base_of(_read(place), options)
    return ModelName(base, hub.get("revision"))


def _base_of(adapter: Adapter, hub: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An adapter's base model, and which of its files to read."""
    named = adapter.config.get("base_model_name_or_path")
    way_out = f"name its base model, and give the adapter as model_params adapter={adapter.folder}"
    if not named or not isinstance(named, str):
        raise ModelError(f"it is an adapter whose {CONFIG} names no base model; {way_out}")
    beside = local_folder(str(adapter.folder / named)) if named.startswith(".") else None
    try:
        meant = read_model_name(str(beside or named))
        base = resolve_model(meant.name)
    except (ModelError, ValueError) as exc:
        raise ModelError(f"it is an adapter of {named!r}, which is not on this machine; {way_out}") from exc
    revision = hub.get("revision") or meant.revision or adapter.config.get("revision")
    arguments = {**hub_arguments(meant, hub), "revision": revision}
    return base, {key: value for key, value in arguments.items() if value is not None}


def _adapter_of(folder: str, hub: Mapping[str, Any]) -> Adapter | None:
    """The adapter in a folder, or in a repository on the hub; None: there is none, or it is unknown."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if local_folder(folder) is None:
        asked = {key: value for key, value in hub.items() if key in (*_FOR_FILES, "subfolder")}
        if find_adapter_config_file(folder, **asked) is None:
            return None
        return _read(_fetched(folder, hub))
    place = Path(folder) / str(hub.get("subfolder") or "")
    return _read(place) if (place / CONFIG).is_file() else None


def _named_adapter(name: str, hub: Mapping[str, Any]) -> Adapter:
    meant = read_model_name(name)
    folder = local_folder(meant.name)
    if folder is None:
        resolve_model(meant.name)  # a path that does not exist
        folder = _fetched(meant.name, hub_arguments(meant, hub))
    return _read(folder)


def _fetched(name: str, hub: Mapping[str, Any]) -> Path:
    """The local folder with a repository's adapter."""
    from huggingface_hub import snapshot_download

    arguments = {key: value for key, value in hub.items() if key in _FOR_FILES and value is not None}
    subfolder = str(hub.get("subfolder") or "")
    patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in _ITS_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **arguments)) / subfolder
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"the adapter {name!r} is not on this machine, and cannot be fetched from the hub "
            f"({short_message(exc)}); check its name, or download it and give its folder"
        ) from exc


def _read(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        ModelError: it is incomplete.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except OSError as exc:
        raise ModelError(f"the adapter {str(folder)!r} has no {CONFIG}; give the folder that peft saved it to") from exc
    except ValueError as exc:
        raise ModelError(f"the {CONFIG} of the adapter {str(folder)!r} is not JSON; check that it is complete") from exc
    if not isinstance(config, Mapping) or not any((folder / name).is_file() for name in WEIGHTS):
        raise ModelError(f"the adapter {str(folder)!r} has no weights ({WEIGHTS[0]}); check that it is complete")
    return Adapter(folder.absolute(), config)


def _weight_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    if not (folder / WEIGHTS[0]).is_file():
        raise ModelError(f"the adapter {str(folder)!r} has its weights in {WEIGHTS[1]}; save it as {WEIGHTS[0]}")
    with safe_open(folder / WEIGHTS[0], framework="pt") as file:
        return list(file.keys())


def check_peft(adapter: Adapter) -> None:
    """Check that peft is installed, without which transformers would ignore an adapter.

    Raises:
        MissingExtraError: peft is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("peft")
    except PackageNotFoundError as exc:
        raise MissingExtraError("peft", extra="lora", purpose=f"the adapter {str(adapter.folder)!r}") from exc


def put_into(model: Any, adapter: Adapter) -> None:
    """Load an adapter into its base model.

    Raises:
        ModelError: it belongs to another model.
    """
    check_complete(model.load_adapter(str(adapter.folder)).to_dict(), adapter)


def check_complete(report: Mapping[str, Any], adapter: Adapter) -> None:
    """Check that an adapter and its model fit together, so that no part of it is ignored.

    Raises:
        ModelError: they do not; the message names the part.
    """
    for kind, what in (("missing_keys", "lacks weights of"), ("unexpected_keys", "has no place for")):
        found = sorted(report.get(kind) or ())
        if found:
            who = "the adapter" if kind == "missing_keys" else "the model"
            raise ModelError(
                f"the adapter {str(adapter.folder)!r} does not fit: {who} {what} {found[0]} and {len(found) - 1} "
                "others; it was trained for another model, or is incomplete"
            )
