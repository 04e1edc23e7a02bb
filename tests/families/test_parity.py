"""Every family's tiny checkpoint does what its row says, measured against transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from reelscribe.errors import ModelError
from reelscribe.models.hf.captioner import HFCaptioner

from . import parity
from .registry import FAMILIES, Family

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Processors and models of transformers warn; only our own warnings are errors beside them.
    pytest.mark.filterwarnings("ignore:::(?!reelscribe|families)"),
]

WORKING = [family for family in FAMILIES.values() if family.captions == "exact"]
OTHERS = [family for family in FAMILIES.values() if family.captions != "exact"]
Record = Callable[[str, str], None]
each = pytest.mark.parametrize("family", WORKING, ids=lambda family: family.name)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Folder of a family's tiny checkpoint, built on first use."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def built(name: str) -> Path:
        return FAMILIES[name].save(root / name)

    def found(family: Family) -> Path:
        missing = family.missing()
        if missing is not None:
            pytest.skip(missing)
        return built(family.name)

    return found


@pytest.fixture(scope="session")
def captioner(checkpoint: Callable[[Family], Path]) -> Callable[[Family], HFCaptioner]:
    """A family's captioner, loaded on first use."""
    found: dict[str, HFCaptioner] = {}

    def loaded(family: Family) -> HFCaptioner:
        if family.name not in found:
            found[family.name] = parity.loaded(checkpoint(family))
        return found[family.name]

    return loaded


@pytest.fixture(scope="session")
def lengths(video_folder: Path) -> Callable[[str], Path]:
    """Path of a video by its name in `parity.LENGTHS`."""
    return lambda name: parity.rendered(name, video_folder)


@pytest.fixture
def record(request: pytest.FixtureRequest, record_property: Record) -> Record:
    """Keep a verdict for the table."""
    record_property("family", request.getfixturevalue("family").name)
    return record_property


@each
def test_frames(family: Family, captioner, lengths, record) -> None:
    paths = {name: lengths(name) for name in parity.LENGTHS if name != parity.LONG}
    verdict = parity.frames_verdict(captioner(family), family, paths)
    record("frames", verdict)
    assert verdict == family.frames


@pytest.mark.slow
@each
def test_frames_of_five_minutes(family: Family, captioner, lengths) -> None:
    long = {parity.LONG: lengths(parity.LONG)}
    assert parity.frames_verdict(captioner(family), family, long) == family.frames


@each
def test_captions(family: Family, captioner, lengths, record) -> None:
    verdict = parity.captions_verdict(captioner(family), family, lengths("3 s"))
    record("captions", verdict)
    assert verdict == "exact"


@each
def test_batches(family: Family, captioner, lengths, record) -> None:
    paths = [lengths(name) for name in ("3 s", "one frame", "12 s")]
    verdict = parity.batches_verdict(captioner(family), paths)
    record("batches", verdict)
    assert verdict == family.batches


@each
def test_candidates(family: Family, captioner, lengths, record) -> None:
    verdict = parity.candidates_verdict(captioner(family), family, lengths("3 s"))
    record("candidates", verdict.partition(":")[0])
    assert verdict.partition(":")[0] == family.candidates, verdict


@pytest.mark.parametrize("family", OTHERS, ids=lambda family: family.name)
def test_what_is_refused_or_fails(family: Family, captioner, lengths, record) -> None:
    try:
        verdict = parity.captions_verdict(captioner(family), family, lengths("3 s"))
    except ModelError as exc:
        verdict = f"refused: {str(exc).partition(': ')[2]}"
    kind, _, message = verdict.partition(": ")
    record("captions", kind)
    record("because", message)
    assert kind == family.captions
    assert family.because in message
