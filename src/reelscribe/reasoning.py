"""Split a model's text into reasoning and answer by their marks. Pure functions over strings.

The marks of another family are one row of `MARKS`; every back end splits here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marks:
    """How a family of models marks its reasoning."""

    open: str
    """Opens the reasoning; written by the model or by the chat template."""
    close: str
    """Closes it; the answer follows."""
    lead: str = ""
    """What must be written before `close` when the reasoning is ended from outside."""
    answer: tuple[str, ...] = ()
    """Marks around an answer, or a part of it; they are removed."""

    @property
    def ending(self) -> str:
        """The text that ends the reasoning from outside."""
        return self.lead + self.close

    def opens(self, prompt: str) -> bool:
        """Whether a prompt ends with opened reasoning."""
        return prompt.rstrip().endswith(self.open.rstrip())


MARKS: tuple[Marks, ...] = (
    Marks(  # Qwen, GLM, DeepSeek, MiMo, Nemotron, Kimi K2, ERNIE, MiniCPM, MiniMax
        "<think>",
        "</think>",
        answer=("<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>", "<response>", "</response>"),
    ),
    Marks("<|channel>thought\n", "<channel|>"),  # Gemma 4
    Marks(  # the harmony format
        "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", lead="<|end|><|start|>assistant"
    ),
    Marks("<|START_THINKING|>", "<|END_THINKING|>", answer=("<|START_RESPONSE|>", "<|END_RESPONSE|>")),  # Command
    Marks("◁think▷", "◁/think▷"),  # Kimi-VL
    Marks("<seed:think>", "</seed:think>"),  # Seed
    Marks("[THINK]", "[/THINK]"),  # Mistral
    Marks("<thinking>", "</thinking>"),  # requested in prompts
)
"""The known marks, the most common first."""
_may_hold_marks = re.compile(
    "[" + re.escape("".join({mark[0] for marks in MARKS for mark in (marks.open, marks.close, *marks.answer)})) + "]"
).search


@dataclass(frozen=True, slots=True)
class Split:
    """A model's text, in two parts."""

    answer: str
    """The text without the reasoning; empty: it has no answer."""
    reasoning: str | None
    """The reasoning; None: no mark was found."""


def split(text: str, *, opened: Marks | None = None) -> Split:
    """Split a text into reasoning and answer; a text without marks is all answer, unchanged.

    Unclosed reasoning extends to the end. Text before a closing mark without an opening one is reasoning: its opening
    mark was in the prompt.

    Args:
        text: the generated text.
        opened: marks of the reasoning that the prompt opened; None: it opened none.

    Example:
        >>> split("Let me look.</think>A red car.")
        Split(answer='A red car.', reasoning='Let me look.')
    """
    if opened is None and not _may_hold_marks(text):
        return Split(text, None)
    rest = text if opened is None else opened.open + text
    thoughts: list[str] = []
    found = False
    while standing := [marks for marks in MARKS if marks.open in rest or marks.close in rest]:
        found = True
        rest = _without(standing[0], rest, thoughts)
    answer = _unwrapped(rest, anywhere=found)
    return Split(answer.strip() if found else answer, joined(thoughts) if found else None)


def joined(thoughts: Sequence[str | None]) -> str:
    """Pieces of reasoning as one text."""
    return "\n\n".join(one.strip() for one in thoughts if one and one.strip())


def _without(marks: Marks, text: str, thoughts: list[str]) -> str:
    """The text without the reasoning between these marks, which goes to `thoughts`."""
    while (start := text.find(marks.open)) >= 0:
        inside = start + len(marks.open)
        end = text.find(marks.close, inside)
        if end < 0:
            break
        thoughts.append(text[inside:end].removesuffix(marks.lead))
        text = text[:start] + text[end + len(marks.close) :]
    before, close, after = text.rpartition(marks.close)
    if close:
        thoughts.append(before.removesuffix(marks.lead))
        text = after
    text, opening, after = text.partition(marks.open)
    if opening:
        thoughts.append(after)
    return text


def _unwrapped(text: str, *, anywhere: bool) -> str:
    """An answer without its surrounding marks: after reasoning wherever they are, otherwise only at its edges."""
    wrappers = tuple(mark for marks in MARKS for mark in marks.answer)
    if not (anywhere or text.lstrip().startswith(wrappers) or text.rstrip().endswith(wrappers)):
        return text
    for mark in wrappers:
        text = text.replace(mark, "")
    return text.strip()
