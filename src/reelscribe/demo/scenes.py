"""What a rendered scene shows, and the sentences that are true of it.

A `Scene` has one or two coloured things, how they move in normalised time (0 is the start of the clip, 1 its end) and
their background. It knows nothing about pixels, frame rates or files; `reelscribe.demo.render` does. `caption` and
`accepted_captions` put a scene into words, `parse_caption` turns such words back into `Facts`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["single", "then", "while"]
Triples = Literal["any", "trained", "novel"]
Role = Literal["alone", "first", "second", "beside"]
Rgb = tuple[float, float, float]
Point = tuple[float, float]

COLORS: dict[str, Rgb] = {
    "red": (220, 35, 35),
    "green": (35, 165, 60),
    "blue": (45, 85, 225),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 185),
    "white": (248, 248, 248),
}
SHAPES = ("circle", "square", "triangle")
ACTIONS = {
    "right": "moves from left to right",
    "left": "moves from right to left",
    "down": "moves from top to bottom",
    "up": "moves from bottom to top",
    "grow": "grows",
    "shrink": "shrinks",
    "bounce": "bounces up and down",
    "still": "stays still",
    "appear": "appears",
    "disappear": "disappears",
}
"""Action to its words."""

FIRST_ACTIONS: dict[Kind, tuple[str, ...]] = {
    "single": tuple(ACTIONS),
    "then": ("right", "left", "down", "up", "grow", "shrink", "appear", "disappear"),
    "while": ("right", "left", "down", "up", "grow", "shrink", "bounce"),
}
"""What the first thing may do, by kind of scene."""

OPPOSITES = {
    "right": "left",
    "left": "right",
    "down": "up",
    "up": "down",
    "grow": "shrink",
    "shrink": "grow",
    "appear": "disappear",
    "disappear": "appear",
    "bounce": "bounce",
    "still": "still",
}
"""What an action becomes when the frames run backwards."""

TEMPLATES = ("{}", "The video shows {}", "In this clip, {}", "There is {}")
"""Accepted wordings; the first is the canonical one."""

SCENE_ATTEMPTS = 400
PLACEMENT_ATTEMPTS = 30


@dataclass(frozen=True)
class Track:
    """Where a thing is at given moments; every field is an array with one entry per moment."""

    x: NDArray[np.float32]
    """Centre, as a fraction of the width."""
    y: NDArray[np.float32]
    """Centre, as a fraction of the height."""
    radius: NDArray[np.float32]
    """Radius, as a fraction of the short side."""
    visible: NDArray[np.bool_]
    """Whether the thing is in the picture."""


@dataclass(frozen=True)
class Thing:
    """One coloured shape and its one action."""

    color: str
    """A key of `COLORS`."""
    shape: str
    """One of `SHAPES`."""
    action: str
    """A key of `ACTIONS`."""
    rgb: Rgb
    """The shade it is painted in, close to the named colour."""
    start: Point
    """Centre before the action, as fractions of width and height."""
    end: Point
    """Centre after the action."""
    start_radius: float
    """Radius before the action, as a fraction of the short side."""
    end_radius: float
    """Radius after the action."""
    begins: float = 0.0
    """Normalised time at which the action starts; for appearing and disappearing the moment itself."""
    ends: float = 1.0
    """Normalised time at which the action ends."""
    half_bounces: float = 1.0
    """How often a bouncing thing goes down and up again."""

    def __post_init__(self) -> None:
        for value, known, name in (
            (self.color, COLORS, "color"),
            (self.shape, SHAPES, "shape"),
            (self.action, ACTIONS, "action"),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is not known; choose one of {', '.join(known)}")

    def at(self, moments: ArrayLike) -> Track:
        """The thing's place, size and visibility at each normalised moment."""
        when = np.asarray(moments, np.float32)
        progress = self._progress(when)
        change = progress if self.action in ("grow", "shrink") else np.zeros_like(progress)
        return Track(
            x=self.start[0] + (self.end[0] - self.start[0]) * progress,
            y=self.start[1] + (self.end[1] - self.start[1]) * progress,
            radius=self.start_radius + (self.end_radius - self.start_radius) * change,
            visible=self._visible(when),
        )

    def _progress(self, when: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.action == "bounce":
            return np.asarray(1 - np.abs(np.cos(np.pi * self.half_bounces * when)), np.float32)
        span = max(self.ends - self.begins, 1e-6)
        return np.asarray(np.clip((when - self.begins) / span, 0, 1), np.float32)

    def _visible(self, when: NDArray[np.float32]) -> NDArray[np.bool_]:
        if self.action == "appear":
            return np.asarray(when >= self.begins)
        if self.action == "disappear":
            return np.asarray(when < self.begins)
        return np.ones(when.shape, np.bool_)


@dataclass(frozen=True)
class Background:
    """The background of the things."""

    rgb: Rgb
    """Mean colour."""
    style: str
    """`plain`, `noise` (new in every frame), `static` (the same noise in every frame) or `gradient`."""
    noise_sigma: float
    """Standard deviation of the noise, in 8-bit levels."""
    gradient: float
    """Brightness at the far edge minus the mean, in 8-bit levels."""
    gradient_across: bool
    """Whether the gradient runs from left to right rather than from top to bottom."""
    seed: int
    """Seed of the noise."""


@dataclass(frozen=True)
class Facts:
    """What a caption claims, independent of wording."""

    kind: Kind
    """One thing, two events in order, or an action next to a still thing."""
    things: tuple[tuple[str, str, str], ...]
    """Colour, shape and action of each thing, in the order of the sentence."""


@dataclass(frozen=True)
class Scene:
    """One or two things in front of a background."""

    kind: Kind
    """How the things are related."""
    things: tuple[Thing, ...]
    """The acting thing first."""
    background: Background
    """The background of them."""

    @property
    def facts(self) -> Facts:
        """The scene as the facts that a true caption states."""
        return Facts(self.kind, tuple((thing.color, thing.shape, thing.action) for thing in self.things))


@dataclass(frozen=True)
class SceneMix:
    """How often each kind of scene is drawn."""

    single: float = 0.42
    """Share of scenes with one thing."""
    then: float = 0.36
    """Share of scenes with one event after the other."""
    beside: float = 0.22
    """Share of scenes with an action next to a still thing."""
    second_disappears: float = 0.25
    """Among two events: how often the second thing disappears rather than appears."""
    both_disappear: float = 0.0
    """Among two events: how often both things are made to disappear, on top of chance."""


NATURAL_MIX = SceneMix()


# ---- drawing a scene --------------------------------------------------------------------------------------------


def is_held_out(color: str, shape: str, action: str) -> bool:
    """Whether training never shows this colour, shape and action together (10 of the 180 triples).

    >>> is_held_out("red", "circle", "right")
    False
    """
    return zlib.crc32(f"{color} {shape} {action}".encode()) % 20 == 7


def sample_scene(
    rng: np.random.Generator,
    *,
    kind: Kind | None = None,
    action: str | None = None,
    aspect: float = 1.0,
    triples: Triples = "any",
    mix: SceneMix = NATURAL_MIX,
) -> Scene:
    """Draw a scene whose things never touch.

    `action` fixes what the first thing does. `triples` selects which colour-shape-action combinations may be drawn:
    `trained` has no held-out triple, `novel` always has one as its first thing, `any` has no restriction. `aspect` is
    width by height of the clip that will be rendered; distances are kept in its pixels.
    """
    drawn_kind: Kind = kind or _draw_kind(rng, mix)
    for _ in range(SCENE_ATTEMPTS):
        names = _draw_names(rng, drawn_kind, action, mix)
        if not _allowed(names, triples):
            continue
        things = _place_apart(rng, drawn_kind, names, aspect)
        if things is not None:
            return Scene(drawn_kind, things, _draw_background(rng, things))
    raise RuntimeError(f"no scene of kind {drawn_kind!r} with action {action!r} in {SCENE_ATTEMPTS} attempts")


def _draw_kind(rng: np.random.Generator, mix: SceneMix) -> Kind:
    kinds: tuple[Kind, ...] = ("single", "then", "while")
    weights = np.array([mix.single, mix.then, mix.beside])
    return kinds[int(rng.choice(3, p=weights / weights.sum()))]


def _draw_names(
    rng: np.random.Generator, kind: Kind, action: str | None, mix: SceneMix
) -> tuple[tuple[str, str, str], ...]:
    """Colour, shape and action of each thing; two things never share a colour."""
    first_color, second_color = (str(color) for color in rng.choice(list(COLORS), 2, replace=False))
    first_shape, second_shape = (str(shape) for shape in rng.choice(SHAPES, 2))
    first_action = action or str(rng.choice(FIRST_ACTIONS[kind]))
    if kind == "single":
        return ((first_color, first_shape, first_action),)
    second_action = "still"
    if kind == "then":
        second_action = "disappear" if rng.random() < mix.second_disappears else "appear"
        if action is None and rng.random() < mix.both_disappear:
            first_action = second_action = "disappear"
    return (first_color, first_shape, first_action), (second_color, second_shape, second_action)


def _allowed(names: Sequence[tuple[str, str, str]], triples: Triples) -> bool:
    held_out = [is_held_out(*name) for name in names]
    if triples == "trained":
        return not any(held_out)
    if triples == "novel":
        return held_out[0] and not any(held_out[1:])
    return True


def _place_apart(
    rng: np.random.Generator, kind: Kind, names: Sequence[tuple[str, str, str]], aspect: float
) -> tuple[Thing, ...] | None:
    """Place the named things, moving one of them until they never touch; None if that fails."""
    if kind == "single":
        return (_place(rng, names[0], "alone"),)
    roles: tuple[Role, Role] = ("first", "second") if kind == "then" else ("beside", "beside")
    things = [_place(rng, name, role) for name, role in zip(names, roles, strict=True)]
    for _ in range(PLACEMENT_ATTEMPTS):
        if not _touch(things[0], things[1], aspect):
            return tuple(things)
        moved = 1 if rng.random() < 0.7 else 0
        things[moved] = _place(rng, names[moved], roles[moved])
    return None


def _touch(one: Thing, other: Thing, aspect: float) -> bool:
    """Whether two things come too close at any time, seen or unseen."""
    moments = np.linspace(0, 1, 21)
    a, b = one.at(moments), other.at(moments)
    across, down = max(aspect, 1.0), max(1 / aspect, 1.0)
    gap = np.hypot((a.x - b.x) * across, (a.y - b.y) * down) - 1.12 * (a.radius + b.radius)
    return bool(gap.min() < 0.03)


@dataclass(frozen=True)
class _Path:
    """Geometry of a thing before its times are known."""

    start: Point
    end: Point
    start_radius: float
    end_radius: float
    half_bounces: float = 1.0


def _moving_path(rng: np.random.Generator, action: str, role: Role) -> _Path:
    radius = _radius(rng, role)
    sideways = action in ("left", "right")
    near = rng.uniform(0.13 if sideways else 0.14, 0.27)
    far = rng.uniform(0.73, 0.87 if sideways else 0.86)
    fixed = rng.uniform(0.19, 0.81)
    begin, end = (near, far) if action in ("right", "down") else (far, near)
    if sideways:
        return _Path((begin, fixed), (end, fixed), radius, radius)
    return _Path((fixed, begin), (fixed, end), radius, radius)


def _sizing_path(rng: np.random.Generator, action: str, role: Role) -> _Path:
    alone = role == "alone"
    small, large = (
        (rng.uniform(0.065, 0.09), rng.uniform(0.22, 0.29))
        if alone
        else (rng.uniform(0.06, 0.085), rng.uniform(0.19, 0.24))
    )
    margin = 0.28 if alone else 0.24
    centre = (rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin))
    start, end = (small, large) if action == "grow" else (large, small)
    return _Path(centre, centre, start, end)


def _bouncing_path(rng: np.random.Generator, _action: str, role: Role) -> _Path:
    radius, across = _radius(rng, role), rng.uniform(0.19, 0.81)
    top, floor = rng.uniform(0.18, 0.28), rng.uniform(0.72, 0.84)
    return _Path((across, top), (across, floor), radius, radius, float(rng.choice([1.0, 1.5, 2.0])))


def _resting_path(rng: np.random.Generator, _action: str, role: Role) -> _Path:
    radius = _radius(rng, role)
    centre = (rng.uniform(0.19, 0.81), rng.uniform(0.19, 0.81))
    return _Path(centre, centre, radius, radius)


_PATHS: dict[str, Callable[[np.random.Generator, str, Role], _Path]] = {
    **dict.fromkeys(("right", "left", "down", "up"), _moving_path),
    **dict.fromkeys(("grow", "shrink"), _sizing_path),
    "bounce": _bouncing_path,
    **dict.fromkeys(("still", "appear", "disappear"), _resting_path),
}


def _radius(rng: np.random.Generator, role: Role) -> float:
    return float(rng.uniform(0.13, 0.21) if role == "alone" else rng.uniform(0.12, 0.17))


def _times(rng: np.random.Generator, action: str, role: Role) -> tuple[float, float]:
    """When the action starts and ends; two events are kept apart so that their order is visible."""
    sudden = action in ("appear", "disappear")
    if role == "second":
        return float(rng.uniform(0.55, 0.74)), 1.0
    if role == "first":
        return (float(rng.uniform(0.12, 0.3)), 1.0) if sudden else (0.0, float(rng.uniform(0.38, 0.5)))
    if action == "appear":
        return float(rng.uniform(0.3, 0.62)), 1.0
    if action == "disappear":
        return float(rng.uniform(0.38, 0.7)), 1.0
    if action in ("bounce", "still"):
        return 0.0, 1.0
    return float(rng.uniform(0, 0.08)), float(rng.uniform(0.9, 1))


def _place(rng: np.random.Generator, name: tuple[str, str, str], role: Role) -> Thing:
    color, shape, action = name
    path = _PATHS[action](rng, action, role)
    begins, ends = _times(rng, action, role)
    return Thing(
        color=color,
        shape=shape,
        action=action,
        rgb=_shade(rng, COLORS[color], 14),
        start=path.start,
        end=path.end,
        start_radius=path.start_radius,
        end_radius=path.end_radius,
        begins=begins,
        ends=ends,
        half_bounces=path.half_bounces,
    )


def _shade(rng: np.random.Generator, rgb: Rgb, spread: float) -> Rgb:
    red, green, blue = (float(np.clip(level + rng.uniform(-spread, spread), 0, 255)) for level in rgb)
    return red, green, blue


_LEVELS = {"black": (0, 22), "dark": (40, 75), "mid": (95, 125), "light": (195, 240)}


def _draw_background(rng: np.random.Generator, things: Sequence[Thing]) -> Background:
    """A background on which every thing stands out: behind white it is never light."""
    white = any(thing.color == "white" for thing in things)
    level = str(rng.choice(list(_LEVELS), p=[0.4, 0.3, 0.3, 0.0] if white else [0.3, 0.2, 0.2, 0.3]))
    base = float(rng.uniform(*_LEVELS[level]))
    gradient = float(rng.uniform(-28, 28))
    return Background(
        rgb=_shade(rng, (base, base, base), 10),
        style=str(rng.choice(["plain", "noise", "static", "gradient"], p=[0.5, 0.2, 0.1, 0.2])),
        noise_sigma=float(rng.uniform(4, 16)),
        gradient=-abs(gradient) if white else gradient,
        gradient_across=bool(rng.integers(2)),
        seed=int(rng.integers(1 << 30)),
    )


# ---- words ------------------------------------------------------------------------------------------------------


def caption(scene: Scene, template: str = TEMPLATES[0]) -> str:
    """The sentence that is true of the scene, in one of the accepted wordings; canonical by default."""
    first, *others = scene.things
    article = "A" if template == TEMPLATES[0] else "a"
    joint = ". It" if template == "There is {}" else ""
    body = f"{article} {first.color} {first.shape}{joint} {ACTIONS[first.action]}"
    link = ", then" if scene.kind == "then" else " while"
    for other in others:
        body += f"{link} a {other.color} {other.shape} {ACTIONS[other.action]}"
    return template.format(body) + "."


def accepted_captions(scene: Scene) -> tuple[str, ...]:
    """Every wording that counts as a true caption of the scene, the canonical one first."""
    return tuple(caption(scene, template) for template in TEMPLATES)


_ACTION_OF_WORDS = {words: action for action, words in ACTIONS.items()}
_NOUN = rf"a ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_VERB = f"({'|'.join(sorted(_ACTION_OF_WORDS, key=len, reverse=True))})"
_SENTENCE = re.compile(
    rf"(?:the video shows |in this clip, |there is )?{_NOUN}(?:\. it)? {_VERB}(?:(, then| while) {_NOUN} {_VERB})?\."
)


def parse_caption(text: str) -> Facts | None:
    """Turn a caption in any accepted wording back into facts; None if it is not such a sentence.

    >>> parse_caption("A red circle grows, then a blue square appears.").things
    (('red', 'circle', 'grow'), ('blue', 'square', 'appear'))
    """
    match = _SENTENCE.fullmatch(text.strip().lower())
    if match is None:
        return None
    color, shape, words, link, other_color, other_shape, other_words = match.groups()
    first = (color, shape, _ACTION_OF_WORDS[words])
    if link is None:
        return Facts("single", (first,))
    second = (other_color, other_shape, _ACTION_OF_WORDS[other_words])
    return Facts("then" if "then" in link else "while", (first, second))
