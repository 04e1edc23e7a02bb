"""Score captions of known scenes: exact sentences, facts, and each attribute separately."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from reelscribe.demo.scenes import OPPOSITES, Facts, Scene, caption, parse_caption

MOVES = ("right", "left", "down", "up")
SIZE_CHANGES = ("grow", "shrink")
NOTHING = (None, None, None)


@dataclass
class Tally:
    """Right answers out of all, by attribute."""

    right: Counter[str] = field(default_factory=Counter)
    """How often each name was right."""
    total: Counter[str] = field(default_factory=Counter)
    """How often each name was scored."""

    def add(self, name: str, right: bool) -> None:
        """Count one."""
        self.total[name] += 1
        self.right[name] += right

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Plain values: right, total and share in percent."""
        return {
            name: {"right": self.right[name], "of": count, "percent": round(100 * self.right[name] / count, 1)}
            for name, count in self.total.items()
        }


def score(scenes: Sequence[Scene], texts: Sequence[str]) -> dict[str, Any]:
    """Compare each text with its scene; returns shares by attribute and a list of errors."""
    tally = Tally()
    wrong = []
    for index, (scene, text) in enumerate(zip(scenes, texts, strict=True)):
        claimed, true = parse_caption(text), scene.facts
        for name, right in _judgements(scene, claimed):
            tally.add(name, right)
        tally.add("exact sentence", text == caption(scene))
        if claimed != true:
            wrong.append({"clip": index, "true": caption(scene), "said": text})
    return {"shares": tally.as_dict(), "wrong": wrong}


def facts_right(scenes: Sequence[Scene], texts: Sequence[str]) -> int:
    """How many texts state exactly the facts of their scene, in any accepted wording."""
    return sum(parse_caption(text) == scene.facts for scene, text in zip(scenes, texts, strict=True))


def reversed_facts(scene: Scene) -> Facts:
    """What is true of a scene with one thing when its frames run backwards."""
    return Facts(scene.kind, tuple((color, shape, OPPOSITES[action]) for color, shape, action in scene.facts.things))


def _judgements(scene: Scene, claimed: Facts | None) -> Iterator[tuple[str, bool]]:
    true = scene.facts
    yield "all facts", claimed == true
    yield "known sentence", claimed is not None
    yield f"kind {true.kind}, all facts", claimed == true
    said = [*(claimed.things if claimed else ()), NOTHING, NOTHING]
    for position, (fact, answer) in enumerate(zip(true.things, said, strict=False)):
        yield from _attributes(fact, answer)
        place = ("first", "second")[position]
        yield f"{place} thing", fact == answer
    if true.kind == "then":
        yield "order", [thing[0] for thing in true.things] == [thing[0] for thing in said[:2]]
        yield f"{true.things[0][2]} then {true.things[1][2]}, all facts", claimed == true


def _attributes(
    fact: tuple[str, str, str], answer: tuple[str | None, str | None, str | None]
) -> Iterator[tuple[str, bool]]:
    for name, one, other in zip(("colour", "shape", "action"), fact, answer, strict=True):
        yield name, one == other
    action = fact[2]
    if action in MOVES:
        yield "direction", action == answer[2]
    if action in SIZE_CHANGES:
        yield "size change", action == answer[2]
    yield f"action {action}", action == answer[2]
