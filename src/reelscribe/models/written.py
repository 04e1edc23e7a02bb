"""Turn generated tokens into a candidate: where a text ends, and where its reasoning does.

Only tokens and text; knows no model. Every back end that has a text's tokens makes its candidates here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..reasoning import Marks, joined, split
from ..types import CUT_CHARACTER, Candidate
from .captioner import Sampling

TextOf = Callable[[Sequence[int]], str]
"""Token ids to text."""

LONGEST_OPENING = 16
"""Tokens at the beginning of a text within which reasoning must be opened."""
LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8."""
LONGEST_MARK = 32
"""Most tokens that a mark takes, with what else its first and last token contain."""

Phase = Literal["undecided", "thinking", "answering"]


@dataclass(frozen=True, slots=True)
class Thought:
    """How one text may reason before its answer."""

    marks: Marks
    """The marks of the reasoning."""
    budget: int
    """Tokens after which it is ended from outside."""
    opened: bool
    """Whether the prompt opened it; otherwise the text itself may."""
    ending: tuple[int, ...]
    """Tokens that end it from outside."""
    close_id: int | None
    """The token that is its closing mark; None: the mark takes several, and is searched for in the text."""
    raw_text_of: TextOf
    """Token ids to text, special tokens included."""

    @property
    def most_tokens(self) -> int:
        """Tokens that opening, reasoning and ending it can take."""
        return LONGEST_OPENING + self.budget + len(self.ending)

    def begun(self, tokens: Sequence[int]) -> tuple[Phase, int]:
        """What the first tokens of a text show, and how many of them come before the reasoning."""
        if self.opened:
            return "thinking", 0
        for count in range(1, min(len(tokens), LONGEST_OPENING) + 1):
            text = self.raw_text_of(tokens[:count]).lstrip()
            if text.startswith(self.marks.open.strip()):
                return "thinking", count
            if not self.marks.open.startswith(text.rstrip("\ufffd")):
                return "answering", 0
        return ("undecided" if len(tokens) < LONGEST_OPENING else "answering"), 0

    def closed(self, tokens: Sequence[int], start: int) -> int | None:
        """Tokens up to the end of the closing mark of reasoning that starts at `start`; None: it is not closed."""
        if self.close_id is not None:
            try:
                return list(tokens).index(self.close_id, start) + 1
            except ValueError:
                return None

        def is_closed(count: int) -> bool:
            return self.marks.close in self.raw_text_of(tokens[start:count])

        if not is_closed(len(tokens)):
            return None
        return bisect_left(range(len(tokens)), True, lo=start, key=is_closed)

    def parts(self, tokens: Sequence[int], start: int, end: int) -> tuple[str, str]:
        """The reasoning between two positions, and what its last token contains after the mark."""
        before, _, behind = self.raw_text_of(tokens[start:end]).partition(self.marks.close)
        return before.removesuffix(self.marks.lead).strip(), behind


def candidate_of(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    *,
    sampling: Sampling,
    eos_ids: Collection[int],
    text_of: TextOf,
    thought: Thought | None = None,
) -> Candidate:
    """The candidate from generated tokens; anything past its end is left out.

    The end token counts. Tokens, probability and end are those of the answer.

    Args:
        tokens: in order; anything may follow the end.
        logprobs: one per token.
        sampling: how long the answer may be, and what ends it.
        eos_ids: tokens that end a text.
        text_of: token ids to text, special tokens skipped.
        thought: how the text may reason first; None: it does not.
    """
    if thought is None:
        return _answer(tokens, logprobs, sampling=sampling, eos_ids=eos_ids, text_of=text_of)
    ended = tokens[: _end(tokens, eos_ids)[0]]
    phase, start = thought.begun(ended)
    if phase != "thinking":
        return _answer(tokens, logprobs, sampling=sampling, eos_ids=eos_ids, text_of=text_of)
    end = thought.closed(ended, start)
    if end is None:
        inside = ended[start : len(ended) - (1 if ended and ended[-1] in eos_ids else 0)]
        return Candidate(
            "", _end(tokens, eos_ids)[1], reasoning=thought.raw_text_of(inside).strip(), reasoning_tokens=len(ended)
        )
    reasoning, behind = thought.parts(tokens, start, end)
    return _answer(
        tokens[end:], logprobs[end:], sampling=sampling, eos_ids=eos_ids, text_of=text_of,
        reasoning=reasoning, reasoning_tokens=end, behind=behind,
    )  # fmt: skip


def _answer(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    *,
    sampling: Sampling,
    eos_ids: Collection[int],
    text_of: TextOf,
    reasoning: str | None = None,
    reasoning_tokens: int = 0,
    behind: str = "",
) -> Candidate:
    tokens = tokens[: sampling.max_tokens]
    count, reason = _end(tokens, eos_ids)
    text = _whole_text(tokens[:count], text_of)
    found = find_stop(text, sampling.stop)
    if found is not None:
        text, reason = text[:found], "stop"
        count = _tokens_until_stop(tokens[:count], sampling.stop, text_of)
    candidate = Candidate(
        text=text if reasoning is None else (behind + text).strip(),
        finish_reason=reason,
        tokens=count,
        mean_logprob=sum(logprobs[:count]) / max(count, 1),
        reasoning=reasoning,
        reasoning_tokens=reasoning_tokens,
    )
    return parted(candidate)


def parted(candidate: Candidate, *, opened: Marks | None = None) -> Candidate:
    """A candidate with the reasoning removed from its text.

    Args:
        candidate: with its raw text.
        opened: marks of the reasoning that the prompt opened; None: it opened none.
    """
    found = split(candidate.text, opened=opened)
    if found.reasoning is None and found.answer == candidate.text:
        return candidate
    if found.reasoning is None:
        return replace(candidate, text=found.answer)
    thoughts = joined([candidate.reasoning, found.reasoning])
    return replace(candidate, text=found.answer, reasoning=thoughts)


def _whole_text(tokens: Sequence[int], text_of: TextOf) -> str:
    """The text of tokens of which the last may be an incomplete character.

    If each byte is a token, a decoder also drops whole characters before an unfinished one: they are decoded again
    without it.
    """
    text = text_of(tokens)
    if not text.endswith(CUT_CHARACTER):
        return text
    # One token more than a character can lack: the end token may follow.
    shorter = [text_of(tokens[:-cut]) for cut in range(1, min(LONGEST_CHARACTER, len(tokens) - 1) + 1)]
    return max((one.rstrip(CUT_CHARACTER) for one in [text, *shorter]), key=len)


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, or None."""
    places = [text.find(stop) for stop in stops if stop]
    return min((place for place in places if place >= 0), default=None)


def _end(tokens: Sequence[int], eos_ids: Collection[int]) -> tuple[int, str]:
    for count, token in enumerate(tokens, start=1):
        if token in eos_ids:
            return count, "stop"
    return len(tokens), "length"


def _tokens_until_stop(tokens: Sequence[int], stops: Sequence[str], text_of: TextOf) -> int:
    def holds_stop(count: int) -> bool:
        return find_stop(text_of(tokens[:count]), stops) is not None

    return bisect_left(range(len(tokens)), True, key=holds_stop)
