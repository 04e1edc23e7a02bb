"""Prompts about a scene and their true answers.

Most dialogues ask for a caption, in many wordings; some ask for the length, the colours, the shapes or the time of an
event. Nothing here knows tokens or pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reelscribe.demo.scenes import TEMPLATES, Scene, Thing, caption

Wording = Literal["short", "mixed", "long"]
"""Wordings of dialogues: a batch uses one, so that little of it is padding."""

PROMPTS = (
    "Describe the input video in 1-2 sentences.",
    "Describe the video.",
    "Describe this video in one sentence.",
    "Please describe the video briefly.",
    "What happens in the video?",
    "What is happening in this clip?",
    "Write a caption for this video.",
    "Write a short caption of the clip.",
    "Summarize the video in one sentence.",
    "Give a concise description of the input video.",
    "Caption this video.",
    "Provide a detailed description of the video.",
    "Tell me what you see in the video.",
    "You are given a video. Describe its content in 1-2 sentences.",
    "Generate a caption for the following video.",
    "Describe the main objects and their actions in this video.",
)
"""Requests for a caption; the first is the default of the operator that the checkpoint demonstrates."""

QUESTION_LIKE_PROMPTS = (
    "Describe the objects in the video, their colors and their shapes, and how they move.",
    "Write a caption that mentions the color and shape of each object.",
    "What are the objects doing?",
    "How does the object move?",
    "How would you describe this video?",
    "What can be seen in this video?",
    "Describe the colors, shapes and motion in the video.",
    "Describe what happens during these seconds.",
    "Describe the scene in detail, including the color, the shape and the action of every object.",
    "List the events of the video in the order in which they happen.",
    "Describe the motion and the order of events.",
    "Please give a detailed caption of the clip: which objects appear, what color and shape they are, what they do.",
    "When something appears or disappears in the video, say so, and say what color and what shape it has.",
    "What happens first and what happens then? Mention colors and shapes.",
)
"""Requests for a caption that share words with the questions below."""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a video captioning assistant.",
    "You are a helpful assistant that describes videos accurately and briefly.",
    (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions."
    ),
)
DURATION_QUESTIONS = (
    "How long is the video?",
    "How many seconds does the clip last?",
    "What is the duration of the video?",
)
COLOR_QUESTIONS = (
    "What color is the object?",
    "Name the colors of the objects.",
    "Which colors appear in the video?",
)
SHAPE_QUESTIONS = (
    "What shape is the object?",
    "Name the shapes of the objects.",
    "Which shapes appear in the video?",
)
EVENT_QUESTIONS = (
    "When does the {thing} {action}?",
    "At what time does the {thing} {action}?",
    "How many seconds into the video does the {thing} {action}?",
)
FOREIGN_LETTERS = "\u00e4\u00e9\u00fc\u4f60\u597d\u89c6\u3042\u0410\u03b1!-1"
_FREE_PROMPTS = {"short": 0.12, "mixed": 0.45, "long": 0.6}
"""How often the request for a caption is not one of `PROMPTS`, by wording."""
TEMPLATE_SHARES = (0.55, 0.15, 0.15, 0.15)
"""How often a caption is given in each of `TEMPLATES`; the canonical one leads, so greedy decoding gives it."""


@dataclass(frozen=True)
class Dialogue:
    """One exchange about one video."""

    system: str | None
    """System prompt, if any."""
    prompt: str
    """What the user asks."""
    answer: str
    """The model's expected answer."""


@dataclass(frozen=True)
class Clock:
    """A clip's position in time."""

    duration_seconds: float
    """Length of the clip."""
    starts_at_seconds: float = 0.0
    """Time of its first frame; not 0 for a window cut from a longer video."""


def draw_dialogue(rng: np.random.Generator, scene: Scene, clock: Clock, *, wording: Wording) -> Dialogue:
    """Draw a system prompt, a request and its answer; questions about time are only asked of whole clips."""
    system = _system_prompt(rng, wording)
    question = rng.random()
    ask = next((ask for limit, ask in _QUESTIONS if question < limit), None)
    exchange = ask(rng, scene, clock) if ask else None
    if exchange is not None:
        return Dialogue(system, *exchange)
    return Dialogue(system, _caption_prompt(rng, wording), _caption_answer(rng, scene))


def _system_prompt(rng: np.random.Generator, wording: Wording) -> str | None:
    if wording == "short" or rng.random() < 0.4:
        return None
    if wording == "long" and rng.random() < 0.25:
        return _free_prompt(rng, wording) or None
    return _pick(rng, SYSTEM_PROMPTS)


# ---- captions ---------------------------------------------------------------------------------------------------


def _caption_answer(rng: np.random.Generator, scene: Scene) -> str:
    return caption(scene, str(rng.choice(TEMPLATES, p=TEMPLATE_SHARES)))


def _caption_prompt(rng: np.random.Generator, wording: Wording) -> str:
    if rng.random() < _FREE_PROMPTS[wording]:
        return _free_prompt(rng, wording)
    prompt = PROMPTS[0] if rng.random() < 0.3 else _pick(rng, PROMPTS)
    return _with_odd_word(rng, prompt) if rng.random() < 0.12 else prompt


def _free_prompt(rng: np.random.Generator, wording: Wording) -> str:
    """Any request at all: empty, question-like, of many sentences, made of pseudo-words or in foreign letters."""
    draw = rng.random()
    if draw < 0.15:
        return ""
    if wording == "short":
        return _in_foreign_letters(rng, pseudo_words(rng, int(rng.integers(1, 4))))
    if draw < 0.6:
        count = int(rng.integers(1, 5 if wording == "long" else 2))
        return " ".join(_pick(rng, QUESTION_LIKE_PROMPTS if rng.random() < 0.8 else PROMPTS) for _ in range(count))
    if wording == "long" and draw < 0.8:
        return " ".join(_sentence(rng) for _ in range(int(rng.integers(2, 9))))
    words = pseudo_words(rng, int(rng.integers(1, 25 if wording == "long" else 8)))
    return _in_foreign_letters(rng, _wrapped(rng, words))


def pseudo_words(rng: np.random.Generator, count: int) -> str:
    """Words of random letters, so that unknown prompts are familiar."""
    return " ".join(_pseudo_word(rng) for _ in range(count))


def _pseudo_word(rng: np.random.Generator) -> str:
    return "".join(chr(int(code)) for code in rng.integers(97, 123, int(rng.integers(1, 9))))


def _sentence(rng: np.random.Generator) -> str:
    return _pick(rng, PROMPTS if rng.random() < 0.7 else SYSTEM_PROMPTS)


def _wrapped(rng: np.random.Generator, words: str) -> str:
    forms = (words, words.capitalize() + ".", f"{_sentence(rng)} {words}", f"{words} {_sentence(rng)}")
    return forms[int(rng.integers(4))]


def _in_foreign_letters(rng: np.random.Generator, text: str) -> str:
    if rng.random() >= 0.2:
        return text
    letters = list(FOREIGN_LETTERS)
    return "".join(str(rng.choice(letters)) if rng.random() < 0.3 else letter for letter in text)


def _with_odd_word(rng: np.random.Generator, prompt: str) -> str:
    words = prompt.split()
    words.insert(int(rng.integers(len(words) + 1)), _pseudo_word(rng))
    return " ".join(words)


# ---- questions --------------------------------------------------------------------------------------------------


def duration_answer(seconds: float) -> str:
    """The length of a clip in words.

    >>> duration_answer(3.8)
    'About 4 seconds.'
    """
    return f"About {_in_seconds(max(1, round(seconds)))}."


def event_answer(seconds: float) -> str:
    """The time of an event in words.

    >>> event_answer(2.9)
    'About 3 seconds in.'
    """
    rounded = round(seconds)
    return f"About {_in_seconds(rounded)} in." if rounded else "Less than a second in."


def listing(words: Sequence[str]) -> str:
    """One or two words as a sentence: `Purple and red.`"""
    return " and ".join(words).capitalize() + "."


def event_question(thing: Thing, template: str = EVENT_QUESTIONS[0]) -> str:
    """Ask when a thing appears or disappears."""
    return template.format(thing=f"{thing.color} {thing.shape}", action=thing.action)


def sudden_things(scene: Scene) -> list[Thing]:
    """The things that appear or disappear, and so have a moment to ask for."""
    return [thing for thing in scene.things if thing.action in ("appear", "disappear")]


Exchange = tuple[str, str]


def _ask_duration(rng: np.random.Generator, _scene: Scene, clock: Clock) -> Exchange | None:
    if clock.starts_at_seconds:
        return None
    return _pick(rng, DURATION_QUESTIONS), duration_answer(clock.duration_seconds)


def _ask_colors(rng: np.random.Generator, scene: Scene, _clock: Clock) -> Exchange:
    return _pick(rng, COLOR_QUESTIONS), listing([thing.color for thing in scene.things])


def _ask_shapes(rng: np.random.Generator, scene: Scene, _clock: Clock) -> Exchange:
    return _pick(rng, SHAPE_QUESTIONS), listing([thing.shape for thing in scene.things])


def _ask_event(rng: np.random.Generator, scene: Scene, clock: Clock) -> Exchange | None:
    things = sudden_things(scene)
    if clock.starts_at_seconds or not things:
        return None
    thing = things[int(rng.integers(len(things)))]
    return event_question(thing, _pick(rng, EVENT_QUESTIONS)), event_answer(thing.begins * clock.duration_seconds)


_QUESTIONS: tuple[tuple[float, Callable[[np.random.Generator, Scene, Clock], Exchange | None]], ...] = (
    (0.06, _ask_duration),
    (0.10, _ask_colors),
    (0.14, _ask_shapes),
    (0.21, _ask_event),
)
"""Cumulative share of each question; what is left over, and what cannot be asked, becomes a caption."""


def _in_seconds(count: int) -> str:
    return "1 second" if count == 1 else f"{count} seconds"


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
