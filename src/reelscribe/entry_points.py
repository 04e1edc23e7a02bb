"""Tables of named rows: those of this package, and those that installed packages bring through entry points.

A row of a package is loaded when it is looked up, so that a package that is broken stops only who names its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from .errors import SettingsError
from .printable import logger

BACKENDS = "reelscribe.backends"
"""Entry points whose object is a `models.backends.Backend`."""
SELECTORS = "reelscribe.selectors"
"""Entry points whose object is a selector, as in `answering.selection`."""
CHECKS = "reelscribe.checks"
"""Entry points whose object is a check, as in `answering.checks`."""
FORMATS = "reelscribe.formats"
"""Entry points whose object is a `data.base.Format`."""
FRAME_POLICIES = "reelscribe.frame_policies"
"""Entry points named for a class of video processor, whose object makes its frame policy, as in `models.chat`."""

log = logger(__name__)

Row = TypeVar("Row")


class Table(Mapping[str, Row]):
    """Rows by name: those built in, in their order, then those of installed packages, by name.

    Args:
        group: of the entry points; their names are the names of the rows.
        built_in: this package's own rows. A package cannot replace one of them.
        what: what a row is called in messages, e.g. `back end`.
        fits: whether the object of an entry point is such a row.
        rule: what it must be, e.g. `a reelscribe.models.backends.Backend`.

    >>> selectors = Table(SELECTORS, {"first": first}, what="selector", fits=callable, rule="a function")
    """

    def __init__(
        self, group: str, built_in: Mapping[str, Row], *, what: str, fits: Callable[[object], bool], rule: str
    ) -> None:
        self.built_in = dict(built_in)
        """The rows of this package."""
        self._group, self._what, self._fits, self._rule = group, what, fits, rule
        self._loaded: dict[str, Row] = {}

    def __getitem__(self, name: str) -> Row:
        """The row with this name.

        Raises:
            KeyError: there is none.
            SettingsError: a package brings one that cannot be loaded or is no such row, or two packages bring one each.
        """
        if name in self.built_in:
            return self.built_in[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from sorted(name for name in self._brought() if name not in self.built_in)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._brought()

    def usable(self) -> Iterator[tuple[str, Row]]:
        """All rows that can be loaded, for a search through them; the others are logged once."""
        for name in self:
            try:
                yield name, self[name]
            except SettingsError as exc:
                _warn(str(exc))

    def package(self, name: str) -> str | None:
        """The package that brings a row; None: it is built in."""
        return None if name in self.built_in else _packages(self._brought()[name])

    def _brought(self) -> Mapping[str, list[EntryPoint]]:
        brought = _entry_points(self._group)
        for name in brought:
            if name in self.built_in:
                _warn(f"the {self._what} {name!r} of {_packages(brought[name])} is not used: one is built in")
        return brought

    def _load(self, name: str) -> Row:
        found = self._brought()[name]
        if len(found) > 1:
            raise SettingsError(f"{_packages(found)} each bring a {self._what} {name!r}; uninstall all of them but one")
        what = f"the {self._what} {name!r} of {_packages(found)} ({found[0].value})"
        try:
            row = found[0].load()
        except Exception as exc:  # whatever a package does while it is imported
            raise SettingsError(f"{what} cannot be loaded: {type(exc).__name__}: {exc}") from exc
        if not self._fits(row):
            raise SettingsError(f"{what} must be {self._rule}; it is {type(row).__name__}")
        return row  # type: ignore[no-any-return]


@cache
def _entry_points(group: str) -> Mapping[str, list[EntryPoint]]:
    """The entry points of a group by name, as they are when a table is first asked for one that is not built in."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _packages(points: list[EntryPoint]) -> str:
    """The packages that bring these, for a message."""
    return " and ".join(sorted("an unknown package" if point.dist is None else point.dist.name for point in points))


@cache
def _warn(sentence: str) -> None:
    """Log a sentence once in a process."""
    log.warning("%s", sentence)
