"""Find from its chat template whether a model reasons before it answers, how to switch that off, and its budget.

A chat template is rendered with possible values of its variables, and the results are compared; no model is recognised
by name. Runs no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

from ..errors import SettingsError
from ..reasoning import MARKS, Marks
from ..types import CaptionRequest, RequestId
from .captioner import Options, PromptOptions, ThinkingSettings
from .chat import chat_messages
from .written import LONGEST_MARK, Thought

SUBJECT = re.compile(r"think|thought|reason", re.IGNORECASE)
"""Parts of the names of variables about reasoning."""
NEGATIVE = re.compile(r"(^|_)(no|non|not|disable|skip|without)", re.IGNORECASE)
"""Parts of such names if true switches reasoning off."""
GIVEN_VARIABLES = frozenset({"messages", "add_generation_prompt", "tools", "documents", "raise_exception"})
"""Variables that users do not set."""
MOST_TRIALS = 64
"""Most renderings of one template."""
PROBE = "What is shown?"
"""Prompt of these renderings."""

Render = Callable[[Mapping[str, Any]], str]
"""Variables to the prompt that the template renders with them."""
Variables = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Switch:
    """How a chat template switches reasoning."""

    off: Variables
    """Variables with which the model does not reason; empty: it does not without any."""
    on: Variables
    """Variables with which it does; empty: it does without any."""


@dataclass(frozen=True)
class Thinking:
    """What is known about a model's reasoning, and the user's settings."""

    settings: ThinkingSettings
    """The user's settings."""
    marks: Marks | None
    """How it marks its reasoning; None: no sign that it reasons."""
    switch: Switch | None = None
    """How its template switches reasoning; None: it has no switch, or the user sets it."""
    opens: bool = False
    """Whether its template opens the reasoning, with the variables used here."""
    variables: Variables = field(default_factory=dict)
    """The resulting variables for the template."""

    @property
    def expected(self) -> bool:
        """Whether the model is known to reason in this run."""
        return self.opens or self.settings.on

    def options(self, options: Options) -> Options:
        """The options, with the variables for the template."""
        if not self.variables:
            return options
        return options.model_copy(update={"chat_template_kwargs": {**self.variables, **options.chat_template_kwargs}})

    @property
    def note(self) -> str | None:
        """Note for the summary of a run; None: nothing."""
        if self.expected:
            return f"the model reasons first, in at most {self.settings.tokens:,} tokens (--thinking-tokens)"
        if self.variables:
            told = ", ".join(f"{name}={value}" for name, value in self.variables.items())
            return f"the model's reasoning is switched off ({told}); --thinking on switches it on"
        return None


NO_THINKING = Thinking(ThinkingSettings(), None)
"""For a model about which nothing is known."""


def thinking_of(processor: Any, options: PromptOptions, settings: ThinkingSettings, *, model: str = "") -> Thinking:
    """What a model's chat template and tokenizer reveal about its reasoning.

    Args:
        processor: the model's.
        options: the user's template variables take precedence over what is found here.
        settings: the user's settings for reasoning.
        model: its name, for messages.

    Raises:
        SettingsError: reasoning is requested, and there is no sign that the model supports it.
    """
    source = template_source(processor)
    shown = _marks_in_template(source)
    if settings.on and shown is None:
        raise SettingsError(
            f"thinking is on, but the chat template of {model or 'this model'} does not support reasoning; leave "
            "thinking (--thinking) out, or choose a model that reasons"
        )
    marks = shown or _marks_in_vocabulary(processor.tokenizer)
    if marks is None:
        return Thinking(settings, None)
    render = _renderer(processor, options)
    given = options.chat_template_kwargs
    switch = find_switch(render, source, marks)
    if switch is not None and not given.keys().isdisjoint({**switch.off, **switch.on}):
        switch = None
    variables = {} if switch is None else switch.on if settings.on else switch.off
    prompt = _tried(render, variables)
    return Thinking(settings, marks, switch, opens=prompt is not None and marks.opens(prompt), variables=variables)


def template_source(processor: Any) -> str:
    """The chat template that a processor uses, as text."""
    template = getattr(processor, "chat_template", None) or ""
    if isinstance(template, Mapping):
        template = template.get("default") or next(iter(template.values()), "")
    return str(template)


def _marks_in_template(source: str) -> Marks | None:
    return next((one for one in MARKS if one.close in source or one.open.strip() in source), None)


def _marks_in_vocabulary(tokenizer: Any) -> Marks | None:
    """Marks that are single tokens."""
    added = set(getattr(tokenizer, "get_added_vocab", dict)())
    return next((one for one in MARKS if one.close in added), None)


def _renderer(processor: Any, options: PromptOptions) -> Render:
    messages = chat_messages(CaptionRequest(RequestId(0, 0), "", PROBE), order=options.prompt_order)

    def render(variables: Mapping[str, Any]) -> str:
        prompt: str = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **{**variables, **options.chat_template_kwargs}
        )
        return prompt

    return render


def find_switch(render: Render, source: str, marks: Marks) -> Switch | None:
    """The chat template variable that switches reasoning; None: it has none.

    The variables are those that the template does not set itself, the values true, false and the strings that it
    compares them with. A value means off if it closes the reasoning in the prompt, or does not open what is otherwise
    opened; for a variable that is named for reasoning, also if it removes what true adds.

    Args:
        render: makes a prompt with given variables.
        source: the template.
        marks: how the model marks its reasoning.
    """
    plain = _tried(render, {})
    if plain is None:
        return None
    trials = islice(_trials(source), MOST_TRIALS)
    tried = [_Trial(name, value, prompt) for name, value in trials if (prompt := _tried(render, {name: value}))]
    off = _best_off(tried, plain, marks)
    if off is None:
        return None
    on = _best_on([one for one in tried if one.name == off.name], off, plain, marks)
    return Switch(
        off={} if off.prompt == plain else {off.name: off.value},
        on={} if on is None or on.prompt == plain else {on.name: on.value},
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """A template rendered with one variable."""

    name: str
    value: Any
    prompt: str


def _best_off(tried: Sequence[_Trial], plain: str, marks: Marks) -> _Trial | None:
    """The value that most clearly switches off."""
    closes = [one for one in tried if _closed(one.prompt, marks)]
    if closes:
        return closes[0]
    if marks.opens(plain):
        return next((one for one in tried if not marks.opens(one.prompt)), None)
    return next((one for one in tried if _takes_away(one, tried)), None)


def _takes_away(off: _Trial, tried: Sequence[_Trial]) -> bool:
    """Whether a boolean is the one that switches off, for a variable that is named for reasoning."""
    if not SUBJECT.search(off.name) or off.value is not bool(NEGATIVE.search(off.name)):
        return False
    others = [one for one in tried if one.name == off.name and one.value is (not off.value)]
    is_shown = str(off.value) in off.prompt or str(off.value).lower() in off.prompt.lower().split()
    return any(one.prompt != off.prompt for one in others) and not is_shown


def _best_on(tried: Sequence[_Trial], off: _Trial, plain: str, marks: Marks) -> _Trial | None:
    """The value that switches on; None: the model reasons without one, or no value does it."""
    opens = [one for one in tried if marks.opens(one.prompt)]
    if marks.opens(plain) or (plain != off.prompt and not opens):
        return None
    differing = [one for one in tried if one.prompt != off.prompt and not _closed(one.prompt, marks)]
    wanted = not bool(NEGATIVE.search(off.name))
    return next(iter([*opens, *(one for one in differing if one.value is wanted), *differing]), None)


def _closed(prompt: str, marks: Marks) -> bool:
    """Whether a prompt ends with empty, closed reasoning."""
    return prompt.rstrip().endswith(marks.close)


def _tried(render: Render, variables: Mapping[str, Any]) -> str | None:
    """The template rendered with these; None: it refuses them."""
    try:
        return render(variables)
    except Exception:  # templates may raise anything
        return None


def _trials(source: str) -> Iterator[tuple[str, Any]]:
    """Variables of a template and values to try, those named for reasoning first."""
    from transformers.utils.chat_template_utils import _compile_jinja_template, _get_template_variables

    try:
        names = _get_template_variables(source) - GIVEN_VARIABLES
        tree = _compile_jinja_template(source).environment.parse(source)
    except Exception:  # a template that cannot be parsed is reported with the first prompt
        return
    for name in sorted(names, key=lambda one: (not SUBJECT.search(one), one)):
        for value in (False, True, *_compared(tree, name)):
            yield name, value


def _compared(tree: Any, name: str) -> list[str]:
    """Texts that a template compares a variable with."""
    found: dict[str, None] = {}
    for one in _nodes(tree, "Compare"):
        if any(side.name == name for side in _nodes(one, "Name")):
            found.update(dict.fromkeys(side.value for side in _nodes(one, "Const") if isinstance(side.value, str)))
    return list(found)


def _nodes(tree: Any, kind: str) -> Iterator[Any]:
    """The nodes of one type in a parsed template."""
    if type(tree).__name__ == kind:
        yield tree
    for child in tree.iter_child_nodes():
        yield from _nodes(child, kind)


class Budgets:
    """Makes the reasoning budget of each generated text.

    Args:
        thinking: what is known about the model.
        tokenizer: the model's.
    """

    def __init__(self, thinking: Thinking, tokenizer: Any) -> None:
        self.thinking = thinking
        self._tokenizer = tokenizer

    @cached_property
    def _undecided(self) -> Thought | None:
        marks = self.thinking.marks
        if marks is None:
            return None
        ending, close = self._ids(marks.ending), self._ids(marks.close)
        if not ending:
            return None
        return Thought(
            marks=marks,
            budget=self.thinking.settings.tokens,
            opened=False,
            ending=ending,
            close_id=close[0] if len(close) == 1 else None,
            raw_text_of=self.raw_text_of,
        )

    def for_prompt(self, prompt_ids: Sequence[int]) -> Thought | None:
        """How a text that follows this prompt may reason; None: the model has no reasoning marks."""
        thought = self._undecided
        if thought is None:
            return None
        tail = self.raw_text_of(list(prompt_ids)[-LONGEST_MARK:])
        return replace(thought, opened=True) if thought.marks.opens(tail) else thought

    @property
    def tokens_per_text(self) -> int:
        """Tokens that reasoning may add to a text."""
        return self.thinking.settings.tokens if self.thinking.expected else 0

    def tokens_after_opening(self, prompt_ids: Sequence[int]) -> int:
        """Tokens of a prompt after the mark that opens its reasoning."""
        marks = self.thinking.marks
        if marks is None:
            return 0
        for count in range(1, 1 + min(LONGEST_MARK, len(prompt_ids))):
            if marks.open.rstrip() in self.raw_text_of(list(prompt_ids)[-count:]):
                return max(0, count - len(self._ids(marks.open)))
        return 0

    def raw_text_of(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special ones included."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def text_of(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special ones skipped."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
