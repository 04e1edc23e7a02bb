"""`reelscribe runs`: what is listed, what is removed, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper, cli
from reelscribe.runners.run.journal import Journal
from reelscribe.runners.run.known_runs import known_runs
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import run_folder
from reelscribe.types import CaptionRequest


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No runs of other tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def operator(fn: Any = lambda _request, _i: "x") -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn))


def clips(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"x")
    return folder


def ended(source: Path, output: Path) -> None:
    """A run that is not finished."""

    def stop(request: CaptionRequest, _i: int) -> str:
        if "b.mp4" in request.video:
            raise KeyboardInterrupt
        return "x"

    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(stop), source, output)


def runs(*arguments: Any, answer: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, ["runs", *map(str, arguments)], input=answer)


def states() -> dict[str, str]:
    return {Path(run.output).name: run.state for run in known_runs()}


def test_runs_are_listed_with_state_size_age_and_place(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips")
    caption_file(operator(), source, tmp_path / "done.jsonl")
    caption_file(operator(), source, source, format="videofolder")
    caption_file(operator(), source, tmp_path / "gone.jsonl")
    (tmp_path / "gone.jsonl").unlink()
    ended(source, tmp_path / "half.jsonl")
    ended(source, tmp_path / "held.jsonl")
    with Journal(run_folder(tmp_path / "held.jsonl")):
        assert states() == {
            "done.jsonl": "finished", "metadata.jsonl": "finished", "gone.jsonl": "output gone",
            "half.jsonl": "unfinished", "held.jsonl": "running",
        }  # fmt: skip
    [line] = [line for line in runs().stdout.splitlines() if "half.jsonl" in line]
    assert line.split()[0] == "unfinished"
    assert " KiB " in line
    assert " s " in line
    assert str(tmp_path / "half.jsonl") in line
    assert str(run_folder(tmp_path / "half.jsonl")) in line
    assert [run.output for run in known_runs([source])] == [str(source / "metadata.jsonl")]
    assert len(known_runs([tmp_path])) == 5


def test_runs_that_others_began_are_found_where_one_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips(tmp_path / "clips")
    caption_file(operator(), source, tmp_path / "deep/done.jsonl")
    caption_file(operator(), source, source, format="videofolder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert known_runs() == []
    assert [run.output for run in known_runs([tmp_path])] == [
        str(source / "metadata.jsonl"), str(tmp_path / "deep/done.jsonl"),
    ]  # fmt: skip
    assert [run.state for run in known_runs([tmp_path / "deep/done.jsonl"])] == ["finished"]


def test_a_home_that_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    source = clips(tmp_path / "clips")
    assert caption_file(operator(), source, tmp_path / "out.jsonl").captions == 2
    assert known_runs() == []


def test_cleaning_asks_and_leaves_outputs_and_unfinished_runs(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips")
    caption_file(operator(), source, source, format="videofolder")
    caption_file(operator(), source, tmp_path / "done.jsonl")
    ended(source, tmp_path / "half.jsonl")
    assert runs("--clean").exit_code == 1
    assert runs("--clean", answer="n\n").exit_code == 1
    assert len(states()) == 3
    result = runs("--clean", answer="y\n")
    assert result.exit_code == 0
    assert "half.jsonl" not in result.output
    assert states() == {"half.jsonl": "unfinished"}
    assert (tmp_path / "done.jsonl").exists()
    assert (source / "metadata.jsonl").exists()
    assert not (source / ".cache").exists()
    assert runs("--clean", "--yes").stdout == "no runs to remove\n"
    assert runs("--clean", "--unfinished", "--yes").exit_code == 0
    assert states() == {}
    assert not run_folder(tmp_path / "half.jsonl").exists()


def test_a_run_in_progress_is_never_removed(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips")
    ended(source, tmp_path / "half.jsonl")
    folder = run_folder(tmp_path / "half.jsonl")
    with Journal(folder):
        assert runs("--clean", "--unfinished", "--yes").stdout == "no runs to remove\n"
    [run] = known_runs()
    from reelscribe.runners.run.known_runs import clean

    with Journal(folder):  # it was taken up after the list was made
        [(_, reason)] = list(clean([run]))
        assert reason == "it is running"
    assert caption_file(operator(), source, tmp_path / "half.jsonl").known_videos == 1


def test_cleaning_follows_no_links(tmp_path: Path) -> None:
    source, theirs = clips(tmp_path / "clips"), tmp_path / "theirs"
    caption_file(operator(), source, tmp_path / "out.jsonl")
    theirs.mkdir()
    (theirs / "file").touch()
    (run_folder(tmp_path / "out.jsonl") / "parts").rmdir()
    (run_folder(tmp_path / "out.jsonl") / "parts").symlink_to(theirs)
    result = runs("--clean", "--unfinished", "--yes")
    assert "is a link to" in result.stderr
    assert (theirs / "file").exists()


def test_names_are_printed_so_that_a_terminal_is_not_steered(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips")
    caption_file(operator(), source, tmp_path / "o\x1b[2Jut.jsonl")
    assert "\x1b" not in runs().stdout
    assert "o\\x1b[2Jut.jsonl" in runs().stdout


def test_the_summary_says_where_the_journal_is(tmp_path: Path) -> None:
    from reelscribe.runners.report.summary import summary_lines

    summary = caption_file(operator(), clips(tmp_path / "clips"), tmp_path / "out.jsonl")
    assert dict(summary_lines(summary))["journal"].startswith(str(run_folder(tmp_path / "out.jsonl")))
