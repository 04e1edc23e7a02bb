"""Choosing among the candidates of one video. To add a strategy, write one function and one row of `SELECTORS`.

Packages add rows through the entry points `reelscribe.selectors`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..entry_points import SELECTORS as GROUP
from ..entry_points import Table
from ..types import Candidate

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_SHINGLE_WORDS = 2
_HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """What a selector may use besides the candidates."""

    original: str
    """Ordinary text of the chunk that contains the video."""
    seed: int
    """Seed of this choice, derived from the run's seed and the sample's content."""


def simhash(text: str, *, by_character: bool | None = None) -> int:
    """64-bit simhash over lower-cased word bigrams; 0 for fewer than two words.

    Words are separated by spaces. A Chinese, Japanese or Korean text without spaces would be a single word: there the
    characters are the words.

    Args:
        text: what to hash.
        by_character: whether characters are the words; None: decided by the text.

    Source: Charikar, "Similarity estimation techniques from rounding algorithms" (2002), section 3. A bigram is hashed
    to the first 8 bytes of its MD5 digest, and a bit set in exactly half of the hashes is 0, as in the package
    `simhash-pybind`, whose values these are.
    """
    words = _words(text, by_character=is_unspaced(text) if by_character is None else by_character)
    shingles = (" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(len(words) - _SHINGLE_WORDS + 1))
    return _majority(b"".join(map(_hashed, shingles)))


def _hashed(shingle: str) -> bytes:
    digest = hashlib.md5(shingle.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    return digest[:_HASH_BYTES]


def _majority(hashes: bytes) -> int:
    """The bits set in more than half of the concatenated hashes."""
    bits = np.unpackbits(np.frombuffer(hashes, np.uint8).reshape(-1, _HASH_BYTES), axis=1)
    return int.from_bytes(np.packbits(2 * bits.sum(axis=0, dtype=int) > len(bits)).tobytes(), "big")


def is_unspaced(text: str) -> bool:
    """Whether a text has no spaces and is written in characters that need none."""
    return len(_words(text, by_character=False)) < _SHINGLE_WORDS and bool(_CJK.search(text))


def _words(text: str, *, by_character: bool) -> list[str]:
    lowered = text.lower()
    if by_character:
        lowered = _CJK.sub(r" \g<0> ", lowered)
    return [word for word in lowered.split(" ") if word]


def hamming_distance(left: int, right: int) -> int:
    """Number of differing bits."""
    return (left ^ right).bit_count()


def _random_any(candidates: Sequence[Candidate], choice: Choice) -> list[Candidate]:
    text = random.Random(choice.seed).choice(candidates).text
    return [next(one for one in candidates if one.text == text)]  # among equal texts the first one


def _similar_one_simhash(candidates: Sequence[Candidate], choice: Choice) -> list[Candidate]:
    by_character = any(map(is_unspaced, [choice.original, *(one.text for one in candidates)]))
    target = simhash(choice.original, by_character=by_character)
    return [min(candidates, key=lambda one: hamming_distance(simhash(one.text, by_character=by_character), target))]


def _all(candidates: Sequence[Candidate], _choice: Choice) -> list[Candidate]:
    return list(candidates)


Selector = Callable[[Sequence[Candidate], Choice], list[Candidate]]
"""Takes whole candidates: their texts as they would be written, without special tokens and never empty (unless all are
kept), their log-probabilities, tokens and finish reasons. Returns those to keep, in order."""

SELECTORS: Table[Selector] = Table(
    GROUP,
    {"random_any": _random_any, "similar_one_simhash": _similar_one_simhash, "all": _all},
    what="selector",
    fits=callable,
    rule="a function of candidates and a `Choice`",
)
"""`keep_candidate_mode` to the function that keeps one candidate, or all of them, in order."""
