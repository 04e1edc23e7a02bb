"""The arguments with which vLLM's engine is started: the user's, and defaults for captioning.

Arithmetic over plain values; vLLM itself is started in `captioner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import SettingsError
from ...reasoning import Marks
from ...video.frames.moments import FramePolicy
from ..captioner import close_matches
from ..chat import most_video_tokens
from ..hf.budget import cache_bytes_per_token
from ..spelling import VLLM_ADVICE, dtype_name, misplaced

SMALLEST_STEP = 8192
"""Fewest tokens that one step of the engine has room for."""
TEXT_TOKENS = 2048
"""Room for the prompt's own text, the system message and the chat template."""
CPU_CACHE_BYTES = 1 << 30
"""Key-value cache on a CPU, unless two of the longest requests need more."""
CPU_BLOCK_TOKENS = 32
"""Tokens of one block of the cache on a CPU: each further candidate reads the last, unfilled block of the prompt again,
and vLLM's default of 128 there is large."""
SEQUENCES = 256
"""Texts generated at once by an engine on an accelerator; started as it is here, vLLM would use 128."""
CPU_SEQUENCES_PER_CORE = 8
"""Texts generated at once per CPU core: more of them only make a step longer."""
FLOAT32_BYTES = 4

OURS = ("model",)
"""Arguments of the engine that have their own parameter: `hf_model`."""


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """The inputs of the defaults."""

    policy: FramePolicy
    """The frame policy."""
    exact: bool
    """Whether the policy's sizes are final."""
    config: Any
    """The model's config."""
    max_tokens: int
    """Longest caption, in tokens."""
    on_cpu: bool
    """Whether vLLM runs on a CPU here."""
    devices: int
    """Accelerators this process may use."""
    cores: int
    """Processor cores this process may use."""
    given: Mapping[str, Any]
    """The user's arguments; they take precedence over every default."""
    marks: Marks | None = None
    """How the model marks its reasoning; None: no sign that it reasons."""
    thinking_tokens: int = 0
    """Longest reasoning, in tokens, if it may reason."""
    hybrid: bool = False
    """Whether some layers of the model keep a state instead of keys and values."""
    lora_rank: int | None = None
    """The largest rank of the LoRA that the model has; None: it has none."""
    lora_looks: bool = False
    """Whether that LoRA changes the part of the model that reads pictures."""


def engine_arguments(setting: EngineSetting, *, known: Iterable[str]) -> dict[str, Any]:
    """Arguments of `AsyncEngineArgs`, without the model: the user's over `DEFAULTS`.

    Args:
        setting: the inputs of the defaults.
        known: names the installed vLLM accepts.

    Raises:
        SettingsError: a name it does not accept.
    """
    check_arguments(setting.given, known)
    arguments = {name: default(setting) for name, default in DEFAULTS.items() if name not in setting.given}
    given = {**setting.given, **({"dtype": dtype_name(setting.given["dtype"])} if "dtype" in setting.given else {})}
    return {**{name: value for name, value in arguments.items() if value is not None}, **given}


def check_arguments(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that the installed vLLM does not accept.

    Raises:
        SettingsError: the message names it and similar ones.
    """
    known = [name for name in known if name not in OURS and not name.startswith("_")]
    for name in names:
        if name in OURS:
            raise SettingsError(f"model_params does not accept {name!r}: hf_model names the model")
        if name not in known:
            otherwise = "it has the fields of vLLM's AsyncEngineArgs"
            hint = misplaced(name, VLLM_ADVICE) or close_matches(name, known, otherwise=otherwise)
            raise SettingsError(f"model_params has no option {name!r}, nor has vLLM; {hint}")


def _max_model_len(setting: EngineSetting) -> int:
    """Tokens for the longest clip, a long prompt, reasoning and a caption, if the model's context is that long."""
    wanted = longest_clip(setting) + TEXT_TOKENS + setting.thinking_tokens + setting.max_tokens
    limit = getattr(setting.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return wanted if limit is None else min(wanted, int(limit))


def longest_clip(setting: EngineSetting) -> int:
    """Tokens of the largest clip that the policy allows."""
    return most_video_tokens(setting.policy, exact=setting.exact)


def _max_num_scheduled_tokens(setting: EngineSetting) -> int | None:
    """On a CPU, tokens of one step; every request fits in it, since none is split there."""
    return max(SMALLEST_STEP, _length(setting)) if setting.on_cpu else None


def _max_num_batched_tokens(setting: EngineSetting) -> int:
    """Every clip fits in one step, since the engine refuses one that does not.

    The engine also keeps this many tokens of vision features. On a CPU it has room for one clip more than a step reads:
    candidates that wait for the next step keep their clip's features, and a clip without room would be split.
    """
    clip = min(longest_clip(setting), _length(setting))
    given = setting.given.get("max_num_scheduled_tokens")
    step = given if isinstance(given, int) else _max_num_scheduled_tokens(setting)
    return max(SMALLEST_STEP, clip) if step is None else step + clip


def _length(setting: EngineSetting) -> int:
    """The longest request; if the user leaves it to vLLM (-1), our own default."""
    given = setting.given.get("max_model_len")
    return given if isinstance(given, int) and given > 0 else _max_model_len(setting)


def _given_count(setting: EngineSetting, name: str) -> int:
    """The user's number of devices, or 1.

    Raises:
        SettingsError: it is invalid.
    """
    value = setting.given.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"model_params: {name} must be a whole number above 0; got {value!r}")
    return value


def _data_parallel_size(setting: EngineSetting) -> int | None:
    """One engine per device, or per group of devices that one model is spread over."""
    group = _given_count(setting, "tensor_parallel_size") * _given_count(setting, "pipeline_parallel_size")
    return None if setting.on_cpu else max(1, setting.devices // group)


def _kv_cache_memory_bytes(setting: EngineSetting) -> int | None:
    """On a CPU, room for two of the longest requests, and at least `CPU_CACHE_BYTES`; elsewhere vLLM measures."""
    if not setting.on_cpu:
        return None
    return max(CPU_CACHE_BYTES, 2 * _length(setting) * cache_bytes_per_token(setting.config, itemsize=FLOAT32_BYTES))


def _reasoning_config(setting: EngineSetting) -> dict[str, str] | None:
    """The marks with which the engine tracks reasoning and ends it when its budget is exhausted."""
    if setting.marks is None or "reasoning_parser" in setting.given:
        return None
    return {"reasoning_start_str": setting.marks.open, "reasoning_end_str": setting.marks.ending}


def _enable_prefix_caching(setting: EngineSetting) -> bool:
    """Candidates share their prompt. The states of a hybrid model are cached only if prompts may be split, which they
    are not on a CPU."""
    return not (setting.on_cpu and setting.hybrid) or setting.given.get("enable_chunked_prefill") is True


def _dtype(setting: EngineSetting) -> str | None:
    """float32 on a CPU, except for hybrid models: vLLM's kernel for their states there supports only bfloat16."""
    if not setting.on_cpu:
        return None
    return "bfloat16" if setting.hybrid else "float32"


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for the largest rank of a LoRA."""


def _max_lora_rank(setting: EngineSetting) -> int | None:
    rank = setting.lora_rank
    return None if rank is None else next((most for most in LORA_RANKS if rank <= most), LORA_RANKS[-1])


DEFAULTS: dict[str, Callable[[EngineSetting], Any]] = {
    "data_parallel_size": _data_parallel_size,
    "enable_prefix_caching": _enable_prefix_caching,
    "mm_processor_cache_gb": lambda _: 0,
    "limit_mm_per_prompt": lambda _: {"video": 1, "image": 0},
    "max_model_len": _max_model_len,
    "max_num_batched_tokens": _max_num_batched_tokens,
    "max_num_scheduled_tokens": _max_num_scheduled_tokens,
    # On a CPU vLLM 0.32 crashes on a request with a seed that is read in two steps (`Generator.set_offset`).
    "enable_chunked_prefill": lambda setting: False if setting.on_cpu else None,
    "max_num_seqs": lambda setting: CPU_SEQUENCES_PER_CORE * setting.cores if setting.on_cpu else SEQUENCES,
    "block_size": lambda setting: CPU_BLOCK_TOKENS if setting.on_cpu else None,
    "enforce_eager": lambda setting: True if setting.on_cpu else None,
    "kv_cache_memory_bytes": _kv_cache_memory_bytes,
    "dtype": _dtype,
    "enable_lora": lambda setting: None if setting.lora_rank is None else True,
    "max_lora_rank": _max_lora_rank,
    "enable_tower_connector_lora": lambda setting: True if setting.lora_looks else None,
    "reasoning_config": _reasoning_config,
    "disable_log_stats": lambda _: True,
    "use_tqdm_on_load": lambda _: False,
}
"""Argument to its default value; None leaves vLLM's own. The operator page has the reasons."""
