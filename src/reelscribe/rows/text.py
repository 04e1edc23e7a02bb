"""Data-Juicer's text grammar: chunks, the videos they own, and where captions go.

A text is split at end-of-chunk tokens; a chunk with k video tokens owns the next k videos. Pure functions over strings,
independent of videos and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .tokens import DEFAULT_TOKENS, SpecialTokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of text and the videos it owns."""

    text: str
    """The chunk as written, without its end-of-chunk token."""
    num_videos: int
    """Number of video tokens in it."""


def split_chunks(text: str, tokens: SpecialTokens = DEFAULT_TOKENS) -> list[Chunk]:
    """Split a text at its end-of-chunk tokens; `join_chunks` restores it byte for byte."""
    return [Chunk(part, find_tokens(part, tokens).count(tokens.video)) for part in text.split(tokens.eoc)]


def join_chunks(chunks: Sequence[Chunk], tokens: SpecialTokens = DEFAULT_TOKENS) -> str:
    """The text that `split_chunks` split."""
    return tokens.eoc.join(chunk.text for chunk in chunks)


def find_tokens(text: str, tokens: SpecialTokens = DEFAULT_TOKENS) -> list[str]:
    """The special tokens of a text, in order."""
    return tokens.pattern.findall(text)


def video_chunks(text: str | None, *, num_videos: int, tokens: SpecialTokens = DEFAULT_TOKENS) -> list[Chunk]:
    """The chunks that own videos; a text without any video token is read as if it started with one per video."""
    chunks = split_chunks(text or "", tokens)
    if any(chunk.num_videos for chunk in chunks):
        return [chunk for chunk in chunks if chunk.num_videos]
    return [Chunk(tokens.video * num_videos + chunks[0].text, num_videos)]


def insert_captions(chunk: Chunk, captions: Sequence[str], tokens: SpecialTokens = DEFAULT_TOKENS) -> str:
    """The generated form of a chunk: its special tokens, each caption after its own video token, one end token.

    >>> insert_captions(Chunk("<__dj__video> old", 1), ["a red car drives by"])
    '<__dj__video> a red car drives by <|__dj__eoc|>'
    """
    if len(captions) != chunk.num_videos:
        raise ValueError(f"the chunk has {chunk.num_videos} video tokens but got {len(captions)} captions")
    waiting = iter(captions)
    parts = [f"{tok} {next(waiting)} " if tok == tokens.video else tok for tok in find_tokens(chunk.text, tokens)]
    return "".join(parts) + tokens.eoc
