"""Positions of text after a video in Qwen2-VL and Qwen2.5-VL, where transformers misplaces it.

In both families a token has three positions: time, row and column. The next text takes the position after the largest
so far in the authors' own code, vLLM and transformers 4. transformers 5 counts only rows and columns, so that text
shares positions with the end of a video whose times reach further than its sides: from about 12 seconds at 640 pixels
on (`tests/test_positions.py` fails once the installed transformers is right).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

MISPLACED = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Model types whose text positions are corrected here."""
KINDS = "mm_token_type_ids"
"""The processor's type of each token, `[B, P]`: 0 for text, else the modality."""


def corrected(positions: Tensor, inputs: Mapping[str, Any], *, model_type: str) -> Tensor:
    """The positions with text after the videos of its row; unchanged for other families, and where they are right.

    Args:
        positions: `[4, B, P]` (text, time, row, column), as the model computes them.
        inputs: the prompts, left-padded, with `attention_mask` and `KINDS`, each `[B, P]`.
        model_type: the config's.
    """
    if model_type not in MISPLACED or positions.ndim != 3 or KINDS not in inputs:
        return positions
    kinds, real = inputs[KINDS].tolist(), inputs["attention_mask"].bool().tolist()
    ahead = torch.zeros(positions.shape[1:], dtype=positions.dtype)
    vision = positions[-3:].cpu()
    for row, (types, mask) in enumerate(zip(kinds, real, strict=True)):
        moved, end = 0, -1
        for start, stop in _spans(types, mask):
            moved = max(moved, end + 1 - int(vision[:, row, start].min()))
            ahead[row, start:stop] = moved
            end = int(vision[:, row, start:stop].max()) + moved
    return torch.cat([positions[:-3], positions[-3:] + ahead.to(positions.device)])


def _spans(types: list[int], mask: list[bool]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of tokens of one type that is not padding."""
    first = mask.index(True)
    for _, group in groupby(range(first, len(types)), key=types.__getitem__):
        places = list(group)
        yield places[0], places[-1] + 1
