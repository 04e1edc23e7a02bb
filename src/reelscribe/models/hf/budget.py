"""How much of a device's memory a batch may use, and how to recognise running out of it.

Knows torch's devices; batches are counted in `waiting`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from .waiting import TokenBudget

CACHE_SHARE = 0.4
"""Share of the free memory that the key-value cache may grow to; the rest is for activations and pixels."""
SMALLEST_BUDGET = 2048
UNKNOWN_MEMORY = 4 * 2**30
"""Bytes assumed free if the system does not report it."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Batch limits beyond which a type of device gains nothing."""

    max_tokens: int
    """Tokens of the key-value cache."""
    max_size: int
    """Videos."""
    max_prompt_tokens: int | None = None
    """Tokens of all prompts. A CPU computes one long prompt as fast as several, and those in one batch are padded to
    the longest and attend through a mask: clips of 2,000 to 5,000 tokens are twice as fast one at a time as in batches
    of four, clips of 600 tokens are fastest in batches of three or four, and short ones in batches as large as possible
    (two cores)."""


DEVICE_LIMITS = {
    "cpu": DeviceLimits(65_536, 16, max_prompt_tokens=2048),
    "mps": DeviceLimits(65_536, 16),
    "cuda": DeviceLimits(524_288, 64),
}
"""Device type to its limits."""


def token_budget(
    model: Any, *, max_tokens: int | None, max_size: int | None, tokens_per_text: int, side_by_side: int = 1
) -> TokenBudget:
    """The budget of each of the batches that run side by side: the user's, else what fits in free memory."""
    device: torch.device = model.device
    limits = DEVICE_LIMITS.get(device.type, DEVICE_LIMITS["cuda"])
    room = int(CACHE_SHARE * free_bytes(device) / side_by_side) // cache_bytes_per_token(
        model.config, itemsize=model.dtype.itemsize
    )
    return TokenBudget(
        max_tokens=max_tokens or max(SMALLEST_BUDGET, min(room, limits.max_tokens)),
        max_size=max_size or limits.max_size,
        tokens_per_text=tokens_per_text,
        max_prompt_tokens=None if max_tokens else limits.max_prompt_tokens,
    )


def cache_bytes_per_token(config: Any, *, itemsize: int) -> int:
    """Bytes of the keys and values of one token in all layers.

    Args:
        config: the model's config.
        itemsize: bytes of one number.
    """
    config = config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * itemsize)


def free_bytes(device: torch.device) -> int:
    """Free memory of `device`, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return UNKNOWN_MEMORY


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an exception of torch means that the device is out of memory."""
    if isinstance(exc, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(exc)[:2000].lower() if isinstance(exc, RuntimeError) else ""
    return any(part in text for part in ("out of memory", "can't allocate memory", "cublas_status_alloc_failed"))
