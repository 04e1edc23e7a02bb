"""Generate texts token by token from prompts that a model has already read.

Knows tokens, settings and when a text ends; does not know how a model computes scores (`Continuation`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...types import Candidate
from ..captioner import Sampling
from ..written import LONGEST_MARK, TextOf, Thought, candidate_of, find_stop
from .logits import Knobs, draw, filter_scores, penalise_presence, penalise_repeats, uniforms_of

STEPS_BETWEEN_CHECKS = {"cpu": 1}
"""Device type to decoding steps between checks for finished texts."""
STEPS_BETWEEN_CHECKS_ELSEWHERE = 8
"""On an accelerator a check waits for the device, so several steps share one."""
FULL_ENOUGH = 0.75
"""Finished texts leave the batch once no more than this share of it is still being generated."""

NEVER = torch.iinfo(torch.long).max // 2
"""A step that no text reaches."""


class Continuation(Protocol):
    """A batch of prompts a model has read, and what it needs to continue."""

    logits: Tensor
    """Scores of each row's next token, `[R, V]`."""

    def advance(self, tokens: Tensor) -> None:
        """Append `tokens` int64 `[R]`, one per row, and compute the next scores."""

    def select(self, index: Tensor) -> None:
        """Make the rows `index` int64 `[K]` the batch, in that order; a row may be repeated or dropped."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text to write."""

    prompt: int
    """Row of the prompt in the batch that was read."""
    sampling: Sampling
    """How its tokens are sampled and where it ends."""
    seed: int
    """Seed of its request."""
    candidate: int
    """Which of the request's candidates it is."""
    thought: Thought | None = None
    """How it may reason before its answer; None: it does not."""

    @property
    def most_tokens(self) -> int:
        """Its maximum length in tokens, reasoning included."""
        return self.sampling.max_tokens + (0 if self.thought is None else self.thought.most_tokens)


def write(
    model: Continuation,
    rows: Sequence[Row],
    *,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    eos_ids: Collection[int],
    text_of: TextOf,
) -> list[Candidate]:
    """Generate every row's text; call it under `torch.inference_mode()`.

    The end token counts as a generated token. Log-probabilities are those of the model's own distribution, before
    temperature, penalties and filters. When reasoning has used up its budget, its closing mark replaces the model's own
    tokens.

    Args:
        model: the prompts, read; it is used up.
        rows: what to write.
        prompt_ids: int64 `[B, P]`, padded.
        prompt_mask: `[B, P]`, 0 where `prompt_ids` is padding.
        eos_ids: tokens that end a text.
        text_of: turns a row's tokens into text, special tokens skipped.

    Returns:
        One candidate per row, in order.
    """
    draft = _Draft(rows, device=model.logits.device, eos_ids=eos_ids, text_of=text_of)
    prompts = torch.tensor([row.prompt for row in rows], device=model.logits.device)
    if prompts.tolist() != list(range(len(model.logits))):
        model.select(prompts)
    chooser = _Chooser(rows, _tokens_in(prompt_ids, prompt_mask, model.logits.shape[-1]).index_select(0, prompts))
    for step in range(draft.longest):
        tokens, logprobs = chooser.choose(model.logits, step, forced=draft.forced(step))
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
    """Which tokens occur in each prompt, bool `[B, V]`; padding and ids past the vocabulary are left out."""
    spare = torch.where(mask.bool() & (ids < vocabulary), ids, vocabulary)
    present = torch.zeros(len(ids), vocabulary + 1, dtype=torch.bool, device=ids.device)
    return present.scatter_(1, spare, True)[:, :vocabulary]


class _Chooser:
    """Chooses the next token of every row; holds the state for that besides the scores."""

    def __init__(self, rows: Sequence[Row], in_prompt: Tensor) -> None:
        settings = [row.sampling for row in rows]
        longest = max(row.most_tokens for row in rows)
        drawn = np.stack([uniforms_of(row.seed, row.candidate, longest) for row in rows])
        self._knobs = Knobs.from_sampling(settings, device=in_prompt.device)
        self._uniforms = torch.from_numpy(drawn).to(in_prompt.device)
        self._all_greedy = all(one.greedy for one in settings)
        self._penalised = any(one.repetition_penalty != 1 or one.presence_penalty != 0 for one in settings)
        self._in_prompt = in_prompt
        self._written = torch.zeros_like(in_prompt)

    def choose(self, logits: Tensor, step: int, *, forced: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens int64 `[R]` and their log-probabilities `[R]` under the raw distribution; `forced` int64 `[R]` are
        tokens that are imposed, -1 where the choice is free."""
        raw = logits.float()
        tokens = self._pick(self._penalise(raw), step)
        if forced is not None:
            tokens = torch.where(forced < 0, tokens, forced)
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
        """Continue with only the rows `index`."""
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
        self.longest = max(row.most_tokens for row in rows)
        """Most steps that any text may take."""
        self._tokens = torch.zeros(len(rows), self.longest, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(len(rows), self.longest, device=device)
        self._limits = torch.tensor([row.sampling.max_tokens for row in rows], device=device)
        self._eos_tokens = torch.tensor(sorted(self._eos), dtype=torch.long, device=device)
        self._ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self._alive = torch.arange(len(rows), device=device)
        self._answer_from = torch.zeros(len(rows), dtype=torch.long, device=device)
        self._thoughts = _Thoughts(rows, device=device) if any(row.thought for row in rows) else None
        if self._thoughts is not None:
            self._answer_from = self._thoughts.answer_from

    def append(self, step: int, tokens: Tensor, logprobs: Tensor) -> None:
        """Add one token to each row still in the batch."""
        self._tokens[self._alive, step] = tokens
        self._logprobs[self._alive, step] = logprobs
        if self._thoughts is not None:
            self._thoughts.note(step, self._alive, tokens)
        self._ended |= torch.isin(tokens, self._eos_tokens) | self._is_full(step)

    def forced(self, step: int) -> Tensor | None:
        """Tokens that must be written next, -1 where any may; None: none."""
        return None if self._thoughts is None else self._thoughts.forced(step, self._alive)

    def _is_full(self, step: int) -> Tensor:
        """Whether each answer in the batch has reached its token limit."""
        return self._answer_from[self._alive] + self._limits[self._alive] <= step + 1

    def going(self, step: int) -> Tensor | None:
        """Positions in the batch of the texts still being generated, or None between two checks."""
        looks = self._thoughts is not None and self._thoughts.must_look
        if (step + 1) % self._check_every and step + 1 < self.longest and not looks:
            return None
        if self._thoughts is not None and looks:
            self._thoughts.look(step, self._alive.tolist(), self._tokens)
            self._ended |= self._is_full(step)
        ended = self._ended.tolist()
        for position, row in enumerate(self._alive.tolist()):
            stops = self._rows[row].sampling.stop
            if stops and not ended[position]:
                begun = 0 if self._thoughts is None else int(self._answer_from[row])
                answer = self._tokens[row, begun : step + 1].tolist()
                ended[position] = find_stop(self._text_of(answer), stops) is not None
        self._ended = torch.tensor(ended, device=self._ended.device)
        return torch.nonzero(~self._ended)[:, 0]

    def select(self, index: Tensor) -> None:
        """Continue with only the rows `index`; what the others hold is kept."""
        self._alive = self._alive.index_select(0, index)
        self._ended = self._ended.index_select(0, index)

    def candidates(self) -> list[Candidate]:
        """The finished texts, in row order."""
        triples = zip(self._rows, self._tokens.tolist(), self._logprobs.tolist(), strict=True)
        return [
            candidate_of(
                tokens[: row.most_tokens],
                logprobs,
                sampling=row.sampling,
                eos_ids=self._eos,
                text_of=self._text_of,
                thought=row.thought,
            )
            for row, tokens, logprobs in triples
        ]


class _Thoughts:
    """Where each text is in its reasoning, on the device."""

    def __init__(self, rows: Sequence[Row], *, device: torch.device) -> None:
        self._rows = rows
        thoughts = [row.thought for row in rows]
        longest = max(len(one.ending) for one in thoughts if one is not None)

        def column(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        self._opened_at = column([0 if one is not None and one.opened else NEVER for one in thoughts])
        self.answer_from = column([0 if one is None else NEVER for one in thoughts])
        """Step at which each answer starts, int64 `[R]`; `NEVER` if it has not."""
        self._budget = column([NEVER if one is None else one.budget for one in thoughts])
        self._close = column([-1 if one is None or one.close_id is None else one.close_id for one in thoughts])
        self._endings = torch.full((len(rows), longest), -1, dtype=torch.long, device=device)
        for row, one in enumerate(thoughts):
            if one is not None:
                self._endings[row, : len(one.ending)] = column(one.ending)
        self._ending_lengths = column([0 if one is None else len(one.ending) for one in thoughts])
        self._undecided = {row for row, one in enumerate(thoughts) if one is not None and not one.opened}
        self._sought = {
            row: 0 for row, one in enumerate(thoughts) if one is not None and one.opened and one.close_id is None
        }
        """Row to where its reasoning starts, for rows whose closing mark is searched for in the text."""
        self._reasoning = {row for row, one in enumerate(thoughts) if one is not None}
        """Rows that may reason, as far as known."""

    @property
    def must_look(self) -> bool:
        """Whether the texts must be examined after each step."""
        return bool(self._undecided or self._sought)

    def forced(self, step: int, alive: Tensor) -> Tensor | None:
        """Closing tokens for exhausted budgets, int64 `[R]`, -1 where none is written; None: no row reasons."""
        if not self._reasoning:
            return None
        place = self._spent(step, alive)
        tokens = self._endings[alive].gather(1, place.clamp(0, self._endings.shape[1] - 1)[:, None])[:, 0]
        return torch.where((place >= 0) & (place < self._ending_lengths[alive]), tokens, -1)

    def note(self, step: int, alive: Tensor, tokens: Tensor) -> None:
        """Record reasoning that these tokens end."""
        if not self._reasoning:
            return
        place = self._spent(step, alive)
        inside = (self._opened_at[alive] <= step) & (self.answer_from[alive] == NEVER)
        closed = inside & ((tokens == self._close[alive]) | (place == self._ending_lengths[alive] - 1))
        self.answer_from[alive] = torch.where(closed, step + 1, self.answer_from[alive])

    def _spent(self, step: int, alive: Tensor) -> Tensor:
        """Steps since each budget was exhausted; below 0 if it is not, or without reasoning."""
        opened_at, inside = self._opened_at[alive], self.answer_from[alive] == NEVER
        return torch.where(inside & (opened_at <= step), step - opened_at - self._budget[alive], -1)

    def look(self, step: int, alive: Sequence[int], written: Tensor) -> None:
        """Update from the texts whether they start with reasoning, and whether it is closed.

        Args:
            step: the last one.
            alive: rows that are still being generated.
            written: tokens of all rows, int64 `[N, S]`.
        """
        self._undecided.intersection_update(alive)
        for row in self._undecided.copy():
            self._decide(row, written[row, : step + 1].tolist())
        for row in self._sought.keys() & set(alive):
            self._seek(row, written[row, : step + 1])
        self._reasoning.intersection_update(alive)
        self._sought = {row: start for row, start in self._sought.items() if row in alive}

    def _decide(self, row: int, tokens: list[int]) -> None:
        thought = self._rows[row].thought
        assert thought is not None
        phase, start = thought.begun(tokens)
        if phase == "undecided":
            return
        self._undecided.discard(row)
        if phase == "answering":
            self.answer_from[row] = 0
            self._reasoning.discard(row)
            return
        self._opened_at[row] = start
        if thought.close_id is None:
            self._sought[row] = start

    def _seek(self, row: int, written: Tensor) -> None:
        thought, start = self._rows[row].thought, self._sought[row]
        assert thought is not None
        tail = written[max(start, len(written) - LONGEST_MARK) :].tolist()
        if thought.closed(tail, 0) is None:
            return
        end = thought.closed(written.tolist(), start)
        if end is not None:
            self.answer_from[row] = end
            del self._sought[row]
