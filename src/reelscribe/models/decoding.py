"""Writing texts token by token from prompts that a model has already read.

Knows tokens, settings and when a text ends; does not know how a model computes scores (`Continuation`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..record import CUT_CHARACTER, Candidate
from .base import Sampling
from .logits import Knobs, draw, filter_scores, penalise_presence, penalise_repeats, uniforms_of

STEPS_BETWEEN_CHECKS = {"cpu": 1}
"""Device type to decoding steps between looks at which texts have ended."""
STEPS_BETWEEN_CHECKS_ELSEWHERE = 8
"""On an accelerator a look waits for the device, so several steps share one."""
FULL_ENOUGH = 0.75
"""Ended texts leave the batch once no more than this share of it is still being written."""
LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8."""

TextOf = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens skipped."""


class Continuation(Protocol):
    """A batch of prompts a model has read, and what it needs to go on."""

    logits: Tensor
    """Scores of each row's next token, `[R, V]`."""

    def advance(self, tokens: Tensor) -> None:
        """Append `tokens` int64 `[R]`, one a row, and compute the next scores."""

    def select(self, index: Tensor) -> None:
        """Make the rows `index` int64 `[K]` the batch, in that order; a row may be taken several times or dropped."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text to write."""

    prompt: int
    """Row of the prompt in the batch that was read."""
    sampling: Sampling
    """How its tokens are chosen and where it ends."""
    seed: int
    """Seed of its request."""
    candidate: int
    """Which of the request's candidates it is."""


def write(
    model: Continuation,
    rows: Sequence[Row],
    *,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    eos_ids: Collection[int],
    text_of: TextOf,
) -> list[Candidate]:
    """Write every row's text; call it under `torch.inference_mode()`.

    The end token counts as a generated token. Log-probabilities are those of the model's own distribution, before
    temperature, penalties and filters.

    Args:
        model: the prompts, read; it is used up.
        rows: what to write.
        prompt_ids: int64 `[B, P]`, padded.
        prompt_mask: `[B, P]`, 0 where `prompt_ids` is padding.
        eos_ids: tokens that end a text.
        text_of: turns a row's tokens into text.

    Returns:
        One candidate a row, in order.
    """
    draft = _Draft(rows, device=model.logits.device, eos_ids=eos_ids, text_of=text_of)
    prompts = torch.tensor([row.prompt for row in rows], device=model.logits.device)
    if prompts.tolist() != list(range(len(model.logits))):
        model.select(prompts)
    chooser = _Chooser(rows, _tokens_in(prompt_ids, prompt_mask, model.logits.shape[-1]).index_select(0, prompts))
    for step in range(draft.longest):
        tokens, logprobs = chooser.choose(model.logits, step)
        draft.append(step, tokens, logprobs)
        going = draft.going(step)
        if going is not None and len(going) == 0:
            break
        if going is not None and len(going) <= FULL_ENOUGH * len(tokens):
            tokens = tokens.index_select(0, going)
            for part in (model, chooser, draft):
                part.select(going)
        if step + 1 < draft.longest:
            model.advance(tokens)
    return draft.candidates()


def _tokens_in(ids: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """Which tokens stand in each prompt, bool `[B, V]`; padding and ids past the vocabulary are left out."""
    spare = torch.where(mask.bool() & (ids < vocabulary), ids, vocabulary)
    present = torch.zeros(len(ids), vocabulary + 1, dtype=torch.bool, device=ids.device)
    return present.scatter_(1, spare, True)[:, :vocabulary]


class _Chooser:
    """Chooses the next token of every row; holds what that depends on besides the scores."""

    def __init__(self, rows: Sequence[Row], in_prompt: Tensor) -> None:
        settings = [row.sampling for row in rows]
        longest = max(one.max_tokens for one in settings)
        drawn = np.stack([uniforms_of(row.seed, row.candidate, longest) for row in rows])
        self._knobs = Knobs.from_sampling(settings, device=in_prompt.device)
        self._uniforms = torch.from_numpy(drawn).to(in_prompt.device)
        self._all_greedy = all(one.greedy for one in settings)
        self._penalised = any(one.repetition_penalty != 1 or one.presence_penalty != 0 for one in settings)
        self._in_prompt = in_prompt
        self._written = torch.zeros_like(in_prompt)

    def choose(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Tokens int64 `[R]` and their log-probabilities `[R]` under the raw distribution."""
        raw = logits.float()
        tokens = self._pick(self._penalise(raw), step)
        if self._penalised:
            self._written.scatter_(1, tokens[:, None], True)
        return tokens, raw.gather(1, tokens[:, None])[:, 0] - raw.logsumexp(-1)

    def _penalise(self, scores: Tensor) -> Tensor:
        if not self._penalised:
            return scores
        scores = penalise_repeats(scores, self._in_prompt | self._written, self._knobs.repetition_penalty)
        return penalise_presence(scores, self._written, self._knobs.presence_penalty)

    def _pick(self, scores: Tensor, step: int) -> Tensor:
        likeliest = scores.argmax(-1)
        if self._all_greedy:
            return likeliest
        drawn = draw(filter_scores(scores, self._knobs), self._uniforms[:, step])
        return torch.where(self._knobs.greedy[:, 0], likeliest, drawn)

    def select(self, index: Tensor) -> None:
        """Go on with the rows `index` alone."""
        self._knobs = self._knobs.select(index)
        self._uniforms = self._uniforms.index_select(0, index)
        self._in_prompt = self._in_prompt.index_select(0, index)
        self._written = self._written.index_select(0, index)


class _Draft:
    """The texts so far, on the device, and which of them have ended."""

    def __init__(self, rows: Sequence[Row], *, device: torch.device, eos_ids: Collection[int], text_of: TextOf) -> None:
        self._rows = rows
        self._eos = frozenset(eos_ids)
        self._text_of = text_of
        self._check_every = STEPS_BETWEEN_CHECKS.get(device.type, STEPS_BETWEEN_CHECKS_ELSEWHERE)
        self.longest = max(row.sampling.max_tokens for row in rows)
        """Steps the longest text may take."""
        self._tokens = torch.zeros(len(rows), self.longest, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(len(rows), self.longest, device=device)
        self._limits = torch.tensor([row.sampling.max_tokens for row in rows], device=device)
        self._eos_tokens = torch.tensor(sorted(self._eos), dtype=torch.long, device=device)
        self._ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self._alive = torch.arange(len(rows), device=device)

    def append(self, step: int, tokens: Tensor, logprobs: Tensor) -> None:
        """Add one token to each row still in the batch."""
        self._tokens[self._alive, step] = tokens
        self._logprobs[self._alive, step] = logprobs
        self._ended |= torch.isin(tokens, self._eos_tokens) | (self._limits[self._alive] <= step + 1)

    def going(self, step: int) -> Tensor | None:
        """Positions in the batch of the texts still being written, or None between two checks."""
        if (step + 1) % self._check_every and step + 1 < self.longest:
            return None
        ended = self._ended.tolist()
        for position, row in enumerate(self._alive.tolist()):
            stops = self._rows[row].sampling.stop
            if stops and not ended[position]:
                ended[position] = _find_stop(self._text_of(self._tokens[row, : step + 1].tolist()), stops) is not None
        self._ended = torch.tensor(ended, device=self._ended.device)
        return torch.nonzero(~self._ended)[:, 0]

    def select(self, index: Tensor) -> None:
        """Go on with the rows `index` alone; what the others hold is kept."""
        self._alive = self._alive.index_select(0, index)
        self._ended = self._ended.index_select(0, index)

    def candidates(self) -> list[Candidate]:
        """The finished texts, in row order."""
        triples = zip(self._rows, self._tokens.tolist(), self._logprobs.tolist(), strict=True)
        return [self._finish(row.sampling, tokens, logprobs) for row, tokens, logprobs in triples]

    def _finish(self, sampling: Sampling, tokens: list[int], logprobs: list[float]) -> Candidate:
        count, reason = self._end(tokens[: sampling.max_tokens])
        text = _whole_text(tokens[:count], self._text_of)
        found = _find_stop(text, sampling.stop)
        if found is not None:
            text, reason = text[:found], "stop"
            count = self._tokens_until_stop(tokens[:count], sampling.stop)
        return Candidate(
            text=text, finish_reason=reason, tokens=count, mean_logprob=sum(logprobs[:count]) / max(count, 1)
        )

    def _end(self, tokens: list[int]) -> tuple[int, str]:
        for count, token in enumerate(tokens, start=1):
            if token in self._eos:
                return count, "stop"
        return len(tokens), "length"

    def _tokens_until_stop(self, tokens: list[int], stops: Sequence[str]) -> int:
        def holds_stop(count: int) -> bool:
            return _find_stop(self._text_of(tokens[:count]), stops) is not None

        return bisect_left(range(len(tokens)), True, key=holds_stop)


def _whole_text(tokens: Sequence[int], text_of: TextOf) -> str:
    """The text of tokens of which the last may be a part of a character.

    Where each byte is a token, a decoder gives up whole characters before an unfinished one, too: they are read again
    without it.
    """
    text = text_of(tokens)
    if not text.endswith(CUT_CHARACTER):
        return text
    # One token more than a character can lack: the end token may follow.
    shorter = [text_of(tokens[:-cut]) for cut in range(1, min(LONGEST_CHARACTER, len(tokens) - 1) + 1)]
    return max((one.rstrip(CUT_CHARACTER) for one in [text, *shorter]), key=len)


def _find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, or None."""
    places = [text.find(stop) for stop in stops if stop]
    return min((place for place in places if place >= 0), default=None)
