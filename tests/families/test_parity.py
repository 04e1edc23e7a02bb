"""Every family's tiny checkpoint does what its row says, measured against transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from reelscribe.errors import ModelError

from . import parity
from .registry import FAMILIES, Family

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Processors and models of transformers warn; only our own warnings are errors beside them.
    pytest.mark.filterwarnings("ignore:::(?!reelscribe|families)"),
]

WORKING = [family for family in FAMILIES.values() if family.captions == "exact"]
FAILING = [family for family in FAMILIES.values() if family.captions == "fails"]
REFUSED = [family for family in FAMILIES.values() if family.captions == "refused"]
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
def lengths(video_folder: Path) -> Callable[[str], Path]:
    """Path of a video by its name in `parity.LENGTHS`."""
    return lambda name: parity.rendered(name, video_folder)


@pytest.fixture
def record(request: pytest.FixtureRequest, record_property: Record) -> Record:
    """Keep a verdict for the table."""
    record_property("family", request.getfixturevalue("family").name)
    return record_property


@each
def test_frames(family: Family, checkpoint, lengths, record) -> None:
    paths = {name: lengths(name) for name in parity.LENGTHS if name != parity.LONG}
    verdict = parity.frames_verdict(parity.loaded(checkpoint(family)), family, paths)
    record("frames", verdict)
    assert verdict == family.frames


@pytest.mark.slow
@each
def test_frames_of_five_minutes(family: Family, checkpoint, lengths) -> None:
    long = {parity.LONG: lengths(parity.LONG)}
    assert parity.frames_verdict(parity.loaded(checkpoint(family)), family, long) == family.frames


@each
def test_captions(family: Family, checkpoint, lengths, record) -> None:
    verdict = parity.captions_verdict(parity.loaded(checkpoint(family)), family, lengths("3 s"))
    record("captions", verdict)
    assert verdict == "exact"


@each
def test_batches(family: Family, checkpoint, lengths, record) -> None:
    paths = [lengths(name) for name in ("3 s", "one frame", "12 s")]
    verdict = parity.batches_verdict(parity.loaded(checkpoint(family)), paths)
    record("batches", verdict)
    assert verdict == family.batches


@each
def test_candidates(family: Family, checkpoint, lengths, record) -> None:
    captioner = parity.loaded(checkpoint(family), temperature=0.9)
    verdict = parity.candidates_verdict(captioner, family, lengths("3 s"))
    record("candidates", verdict.partition(":")[0])
    assert verdict.partition(":")[0] == family.candidates, verdict


@pytest.mark.parametrize("family", FAILING, ids=lambda family: family.name)
def test_what_fails(family: Family, checkpoint, lengths, record) -> None:
    verdict = parity.captions_verdict(parity.loaded(checkpoint(family)), family, lengths("3 s"))
    assert verdict.startswith("fails: ")
    assert family.because in verdict
    record("captions", "fails")
    record("because", verdict.removeprefix("fails: "))


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_what_is_refused(family: Family, checkpoint, record) -> None:
    with pytest.raises(ModelError) as refusal:
        parity.loaded(checkpoint(family))
    assert family.because in str(refusal.value)
    record("captions", "refused")
    record("because", str(refusal.value).partition(": ")[2])
