"""Quicker forms of two operations of Qwen3-VL on a CPU, with the same results.

They hold for training batches only: every frame of a batch has the same size. `training.check` proves the equality.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as functional
from torch import Tensor
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen


def _vision_attention(
    self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_options: Any
) -> Tensor:
    """All frame pairs in one call, where the original loops over them."""
    patches = hidden_states.shape[0]
    length = int(cu_seqlens[1] - cu_seqlens[0])
    query, key, value = self.qkv(hidden_states).reshape(patches, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (
        part.reshape(patches // length, length, self.num_heads, -1).transpose(1, 2) for part in (query, key, value)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return self.proj(mixed.transpose(1, 2).reshape(patches, -1))


def _patch_embedding(self: Any, pixels: Tensor) -> Tensor:
    """A convolution over patches that do not overlap is one matrix product."""
    return functional.linear(pixels, self.proj.weight.view(self.embed_dim, -1), self.proj.bias)


@contextmanager
def fast_operations() -> Iterator[None]:
    """Swap the quicker forms in, and the original ones back on leaving."""
    originals = (qwen.Qwen3VLVisionPatchEmbed.forward, qwen.Qwen3VLVisionAttention.forward)
    qwen.Qwen3VLVisionPatchEmbed.forward = _patch_embedding
    qwen.Qwen3VLVisionAttention.forward = _vision_attention
    try:
        yield
    finally:
        qwen.Qwen3VLVisionPatchEmbed.forward, qwen.Qwen3VLVisionAttention.forward = originals
