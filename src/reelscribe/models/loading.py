"""From a name and `model_params` to a transformers processor and model on a device.

The boundary to transformers' loaders: their errors become one sentence, their log output is reduced.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ..errors import MissingExtraError, ModelError, SettingsError, needing
from .adapters import Checkpoint, check_complete, check_peft, find_checkpoint, put_into
from .captioner import PromptOptions, close_matches, read_options
from .chat import resolve_model
from .classes import class_for
from .spelling import TRANSFORMERS_ADVICE, dtype_name, misplaced

HUB_ARGUMENTS = frozenset(
    {
        "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
        "trust_remote_code",
    }
)  # fmt: skip
"""Arguments that select which files to read: they go to the config, the processor and the model alike."""

MODEL_ARGUMENTS = frozenset(
    {
        "adapter_kwargs", "allow_all_kernels", "attn_implementation", "device_map", "disable_mmap",
        "distributed_config", "dtype", "experts_implementation", "gguf_file", "ignore_mismatched_sizes",
        "kernel_config", "key_mapping", "max_memory", "offload_buffers", "offload_folder", "quantization_config",
        "tp_plan", "tp_size", "torch_dtype", "use_kernels", "use_safetensors", "variant", "weights_only",
    }
)  # fmt: skip
"""Further arguments of `from_pretrained`; fields of the model's config are accepted as well."""


LOADER = "AutoModelForImageTextToText"
"""The class of transformers that loads models."""
LEAST_DTYPE_BYTES = 2
"""Smaller dtypes hold only weights: models are quantised to them, not run in them."""


class HFOptions(PromptOptions):
    """Parameters of `model_params` that are ours; every other goes to `from_pretrained`."""

    device: str | None = None
    """Where the model runs: `cpu`, `cuda`, `cuda:1`, `mps`; None uses the best available device."""
    rank: Annotated[int, Field(ge=0)] | None = None
    """Index of this process among those that share the machine; picks its CUDA device."""
    adapter: str | None = None
    """A LoRA or another adapter saved by peft, to load into the model: a folder, or a name on the hub."""
    max_batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens of the key-value cache one batch may need, padding and candidates included; None depends on free memory.
    On a CPU two batches run side by side."""
    max_batch_size: Annotated[int, Field(gt=0)] | None = None
    """Most videos in one batch; None uses the device's default."""
    max_batch_wait_seconds: Annotated[float, Field(ge=0)] = 0.3
    """How long a video waits for others to share its batch while the model is idle."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run."""

    model: Any
    """The transformers model, in evaluation mode, on its device."""
    processor: Any
    """Its processor."""
    options: HFOptions
    """Our part of `model_params`."""


def load_model(name: str, params: Mapping[str, Any]) -> LoadedModel:
    """Load a video model and its processor.

    Args:
        name: a bundled model, a name on the hub, or a local folder; of a model, or of an adapter.
        params: `model_params` as the user wrote them; not changed.

    Raises:
        SettingsError: a parameter that neither this package nor `from_pretrained` has, or a value that cannot work.
        ModelError: the model is missing, broken, or takes no videos.
        MissingExtraError: it has an adapter, and peft is not installed.
    """
    options, arguments = split_params(params)
    resolve_model(name)
    hub = {key: value for key, value in arguments.items() if key in HUB_ARGUMENTS}
    with loading_errors(name), quiet_transformers():
        source = find_checkpoint(name, hub, adapter=options.adapter)
        if source.adapter is not None:
            check_peft(source.adapter)
    with loading_errors(name, base=source.base), quiet_transformers():
        _check_own_code(source.base, source.hub)
        config = load_config(source.base, source.hub)
        _check_fields(arguments, config)
        processor = load_own_processor(source)
        check_tokenizer(processor, config)
        weights = {**{key: value for key, value in arguments.items() if key not in hub}, **source.hub}
        model = _load_weights(source, weights, options, config=config)
    return LoadedModel(model=model, processor=processor, options=options)


def load_own_processor(source: Checkpoint) -> Any:
    """The processor of a model, or of its adapter if that was saved with one.

    Raises:
        ModelError: it takes no videos or has no chat template.
    """
    processor = load_processor(*source.processor)
    if source.chat_template is not None:
        processor.chat_template = source.chat_template
    return processor


def split_params(params: Mapping[str, Any]) -> tuple[HFOptions, dict[str, Any]]:
    """Our options and the arguments of `from_pretrained`, remote code off unless requested.

    Raises:
        SettingsError: a value of ours that cannot work, or settings that contradict each other.
    """
    own = {key: value for key, value in params.items() if key in HFOptions.model_fields}
    arguments = {"trust_remote_code": False, **{key: params[key] for key in params if key not in own}}
    if "device" in own and arguments.get("device_map") is not None:
        raise SettingsError(
            f"model_params sets device={own['device']!r} and device_map={arguments['device_map']!r}; give one of them"
        )
    if not isinstance(arguments["trust_remote_code"], bool):
        raise SettingsError(
            f"model_params: trust_remote_code must be true or false; got {arguments['trust_remote_code']!r}"
        )
    _check_quantization(arguments.get("quantization_config"))
    if "torch_dtype" in arguments:
        arguments.setdefault("dtype", arguments.pop("torch_dtype"))
    options = read_options(HFOptions, own)
    if options.device is not None:
        _check_device(options.device)
    return options, arguments


def _check_quantization(given: Any) -> None:
    if given is None or hasattr(given, "quant_method") or (isinstance(given, Mapping) and given):
        return
    raise SettingsError(
        'model_params: quantization_config must be a mapping, such as {"load_in_4bit": true} or {"quant_method": '
        f'"fp8"}}; got {given!r} (a model saved quantised, for example with AWQ or GPTQ, needs none)'
    )


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        raise SettingsError(
            f"model_params: device {device!r} is not available; the best available device is {best_device()!r}"
        ) from exc


def _check_fields(arguments: Mapping[str, Any], config: Any) -> None:
    """Refuse names that `from_pretrained` would hand to the model's constructor or drop."""
    known = HUB_ARGUMENTS | MODEL_ARGUMENTS | set(config.to_dict())
    for name in arguments:
        if name not in known:
            ours = f"besides from_pretrained's arguments it has {', '.join(HFOptions.model_fields)}"
            hint = misplaced(name, TRANSFORMERS_ADVICE) or close_matches(
                name, [*known, *HFOptions.model_fields], otherwise=ours
            )
            raise SettingsError(f"model_params has no option {name!r}, nor has from_pretrained; {hint}")


def load_config(folder: str, hub: Mapping[str, Any]) -> Any:
    """The model's config.

    Raises:
        ModelError: it is an encoder-decoder.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, **hub)
    if config.is_encoder_decoder:
        raise ModelError(f"it is an encoder-decoder ({config.model_type}); choose a decoder-only video model")
    return config


def _check_own_code(folder: str, hub: Mapping[str, Any]) -> None:
    """Refuse a model whose own code has no class that transformers could load it with, trusted or not."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    asked = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    config, _ = PreTrainedConfig.get_config_dict(folder, **asked)
    classes = config.get("auto_map") or {}
    is_known = config.get("model_type") in CONFIG_MAPPING and not hub.get("trust_remote_code")
    if classes and not is_known and LOADER not in classes:
        found = ", ".join(name for name in classes if name.startswith("AutoModel")) or "none"
        raise ModelError(
            f"its own code provides no {LOADER} (only {found}), so it cannot be run here; choose its version for "
            "transformers, whose name often ends in -hf"
        )


def load_processor(folder: str, arguments: Mapping[str, Any]) -> Any:
    """The model's processor, padding on the left.

    Raises:
        ModelError: it takes no videos or has no chat template.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, **arguments)
    if getattr(processor, "video_processor", None) is None:
        raise ModelError(f"it takes no videos (its processor is a {type(processor).__name__}); choose a video model")
    if getattr(processor, "chat_template", None) is None:
        raise ModelError("it has no chat template; choose a model tuned for chat")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def check_tokenizer(processor: Any, config: Any) -> None:
    """Refuse a tokenizer without its files, as transformers creates one if they are missing.

    Raises:
        ModelError: it has no words, or lacks the video token.
    """
    tokenizer = processor.tokenizer
    words = set(tokenizer("Describe this video.", add_special_tokens=False)["input_ids"])
    video = getattr(config, "video_token_id", getattr(config, "video_token_index", None))
    if isinstance(video, int):
        mark = tokenizer.convert_ids_to_tokens(video) if video < len(tokenizer) else None
        words = words if mark and video in tokenizer(mark, add_special_tokens=False)["input_ids"] else set()
    if words <= {tokenizer.unk_token_id, None}:
        raise ModelError(
            "its tokenizer is incomplete (tokenizer.json or tokenizer_config.json is missing or belongs to another "
            "model); download the whole model again"
        )


def load_generation_defaults(folder: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """The generation config that comes with a model, as plain values; empty if it has none."""
    from transformers import GenerationConfig

    try:
        with quiet_transformers():
            config = GenerationConfig.from_pretrained(folder, **hub)
    except OSError:
        return {}
    return dict(config.to_dict())


def _load_weights(source: Checkpoint, arguments: Mapping[str, Any], options: HFOptions, *, config: Any) -> Any:
    loader = class_for(config)
    device = options.device
    if arguments.get("device_map") is None:
        device = own_device(device or best_device(), options.rank)
    dtype = _dtype(arguments.get("dtype"), device)
    model, report = loader.from_pretrained(source.base, **{**arguments, "dtype": dtype, "output_loading_info": True})
    if source.adapter is not None and not source.is_apart:
        check_complete(report, source.adapter)  # transformers has loaded it, and reports on nothing else
    elif missing := sorted(report["missing_keys"]):
        raise ModelError(f"it lacks weights ({len(missing)}, such as {missing[0]}); download the whole model again")
    elif source.adapter is not None:
        put_into(model, source.adapter)
    return model.eval() if device is None else model.to(device).eval()


def best_device() -> str:
    """`cuda`, else `mps`, else `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def own_device(device: str, rank: int | None) -> str:
    """The device of one process among several: with several CUDA devices, `rank` modulo their number."""
    import torch

    if device != "cuda" or rank is None:
        return device
    return f"cuda:{rank % torch.cuda.device_count()}"


def _dtype(given: Any, device: str | None) -> Any:
    import torch

    given = dtype_name(given)
    if given is None:
        return _default_dtype(device or best_device())
    if isinstance(given, torch.dtype) or given == "auto":
        return given
    found = getattr(torch, given, None) if isinstance(given, str) else None
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < LEAST_DTYPE_BYTES:
        raise SettingsError(f"model_params: dtype must be 'auto', 'float32', 'bfloat16' or 'float16'; got {given!r}")
    return found


def _default_dtype(device: str) -> Any:
    """bfloat16 on CUDA (float16 on devices without it), float16 on MPS, float32 on the CPU."""
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.startswith("mps") else torch.float32


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' warnings and progress bars while the body runs, then restore its settings.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    with needing("hf", purpose="reading a model's config and processor"):
        from transformers.utils import logging as chatter

    hub = logging.getLogger("huggingface_hub")
    level, hub_level, bars = chatter.get_verbosity(), hub.level, chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    hub.setLevel(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            chatter.enable_progress_bar()


@contextmanager
def loading_errors(name: str, *, base: str | None = None) -> Iterator[None]:
    """Turn an error while model `name` loads into one sentence that names it and the remedy; for an adapter of model
    `base`, that as well."""
    told = f"model {name!r}"
    if base is not None and base != resolve_model(name):
        told += f", an adapter of {base!r},"
    try:
        yield
    except (SettingsError, MissingExtraError):
        raise
    except ModelError as exc:
        raise ModelError(f"{told} cannot be used: {exc}") from exc
    except Exception as exc:
        raise ModelError(f"{told} cannot be loaded: {_advice(exc)}") from exc


_ADVICE = {
    "trust_remote_code": "it runs its own code; if you trust it, set model_params={'trust_remote_code': True}",
    "gated repo": "access to it is restricted; ask for it on the model's page and set HF_TOKEN",
    "is not a valid model identifier": "no such model exists on the hub (for a private one set HF_TOKEN)",
    "not a valid git identifier": "it has no such revision; check model_params={'revision': …}",
    "couldn't connect": "it is not on this machine and the hub cannot be reached; download it first or give a folder",
    "cannot find the requested files": "it is not on this machine and access to the hub is off; download it first",
    "recognize this architecture": "this version of transformers does not know its architecture; choose another model",
    "unrecognized configuration class": "transformers' AutoModelForImageTextToText does not load models of its kind; "
    "choose a video model",
    "ignore_mismatched_sizes": "its weights do not match the sizes in its config; check that both belong together",
    "prompt learning": "adapters that add to the prompt are not supported; LoRA and similar ones are",
    "can't load image processor": "it has no processor for pictures and videos; choose a video model",
    "can't load video processor": "it has no processor for videos; choose a video model",
    "can't load processor": "it has no processor for pictures and videos; choose a video model",
    "out of memory": "it does not fit in the memory of the device; choose a smaller one, or set device_map",
}
"""Part of a loader's message, in lower case, to its explanation."""


def _advice(exc: Exception) -> str:
    message = str(exc)
    if package := _missing_package(exc):
        return f"it needs the package {package!r}: pip install {package}"
    for part, meaning in _ADVICE.items():
        if part in message.lower():
            return meaning
    broken = isinstance(exc, OSError | json.JSONDecodeError) or "safetensor" in type(exc).__name__.lower()
    return f"{_first_line(message)}{'; check that it is complete' if broken else ''}"


def _missing_package(exc: Exception) -> str | None:
    """The package that a model's own processor or layers require."""
    if not isinstance(exc, ImportError):
        return None
    named = re.search(r"pip install (?:-U |--upgrade )?[\"']?([A-Za-z0-9][\w.-]*)", str(exc))
    return named[1] if named else exc.name


def _first_line(message: str, limit: int = 300) -> str:
    line = " ".join(message.strip().split("\n")[0].split())
    return line.rstrip(".") if len(line) <= limit else f"{line[:limit]}…"
