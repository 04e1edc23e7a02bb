"""What CONTRIBUTING.md says of packages that bring a captioner, a selector, a check or a format, to the letter."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from packages import forget, on_path, reelscribe, write_package
from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper
from rows import jsonl, load

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
SAY = ("--backend", "scripted", "--model-param", "template='{video} {i}'")


def package_of(title: str, site: Path) -> Path:
    """Install what a section of the page shows: each python block is the module that its first line names."""
    text = CONTRIBUTING.read_text("utf-8")
    section = text[text.index(f"## {title}\n") :].split("\n## ")[0]
    blocks = re.findall(r"```(python|toml)\n(.*?)```", section, re.DOTALL)
    modules = {re.match(r"# (\w+)\.py\n", code)[1]: code for kind, code in blocks if kind == "python"}  # type: ignore[index]
    (points,) = (tomllib.loads(code)["project"]["entry-points"] for kind, code in blocks if kind == "toml")
    return write_package(site, next(iter(modules)).replace("_", "-"), modules=modules, points=points)


@pytest.fixture
def rows(tmp_path: Path, video: Callable[[str], Path]) -> Path:
    return jsonl(tmp_path / "rows.jsonl", [{"video": str(video(name))} for name in ("h264.mp4", "hevc.mp4")])


def test_a_captioner(rows: Path, tmp_path: Path) -> None:
    site = package_of("How to add a captioner", tmp_path / "site")
    for threshold, text in ((0, "A bright clip."), (256, "A dark clip.")):
        output = tmp_path / f"{threshold}.jsonl"
        given = ("--backend", "light", "--model-param", f"threshold={threshold}", "--candidates", "2", "--keep", "all")
        reelscribe("caption", rows, "-o", output, *given, site=site)
        assert [row["captions"] for row in load(output)] == [[text, text]] * 2
    wrong = ("-o", tmp_path / "wrong.jsonl", "--backend", "light", "--model-param", "treshold=3")
    assert "did you mean threshold?" in reelscribe("caption", rows, *wrong, site=site, code=1).stderr


def test_a_selector(rows: Path, tmp_path: Path) -> None:
    site = package_of("How to add a selector", tmp_path / "site")
    say = ("--backend", "scripted", "--model-param", "template='{video} {i} {prompt}'", "--prompt", "and more")
    words = ("--sampling-param", "temperature=1", "--candidates", "3", "--keep", "longest")
    reelscribe("caption", rows, "-o", tmp_path / "out.jsonl", *say, *words, site=site)
    assert [row["captions"] for row in load(tmp_path / "out.jsonl")] == [["h264 0 and more"], ["hevc 0 and more"]]
    unknown = reelscribe("caption", rows, "-o", tmp_path / "no.jsonl", *SAY, "--keep", "last", site=site, code=2)
    assert "'last' is not one of 'random_any', 'similar_one_simhash', 'all', 'longest'" in unknown.stderr


def test_a_selector_sees_whole_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(monkeypatch, package_of("How to add a selector", tmp_path / "site"))
    texts = ["one", "one two three", "one two", "three two one"]
    operator = VideoCaptioningFromVLMMapper(
        captioner=ScriptedCaptioner(lambda request, i: texts[i]),
        caption_num=4,
        keep_candidate_mode="longest",
        keep_original_sample=False,
        caption_key="kept",
    )
    assert [row["kept"] for row in operator.run([{"text": "", "videos": ["a.mp4"]}])] == [["one two three"]]
    forget()


def test_a_check(rows: Path, tmp_path: Path) -> None:
    site = package_of("How to add a check", tmp_path / "site")
    long = ("--backend", "scripted", "--model-param", "template='{video} has three'")
    reelscribe("caption", rows, "-o", tmp_path / "long.jsonl", *long, site=site)
    assert [row["captions"] for row in load(tmp_path / "long.jsonl")] == [["h264 has three"], ["hevc has three"]]
    reelscribe("caption", rows, "-o", tmp_path / "short.jsonl", *SAY, site=site, code=3)
    failures = load(tmp_path / "short.jsonl.failures.jsonl")
    assert [(row["kind"], "fewer than three words" in row["message"]) for row in failures] == [("rejected", True)] * 2


def test_a_format(rows: Path, tmp_path: Path) -> None:
    site = package_of("How to add a format", tmp_path / "site")
    videos = [row["video"] for row in load(rows)]
    (tmp_path / "videos.list").write_text("".join(f"{path}\n" for path in [*videos, "gone.mp4"]))
    output = tmp_path / "captioned.list"
    given = ("caption", tmp_path / "videos.list", "-o", output, "--model", "reelscribe/shapes", "--max-tokens", "3")
    reelscribe(*given, "--limit", "2", site=site)
    first = output.read_text().splitlines()
    assert [line.split("\t")[0] for line in first] == videos
    assert all(line.split("\t")[1] for line in first)
    reelscribe(*given, "--update", site=site, code=3)
    assert output.read_text().splitlines() == [*first, "gone.mp4\t"]
    edited = output.read_text().replace(first[0], f"{videos[0]}\tA person wrote this.")
    output.write_text(edited)
    done = reelscribe(*given, "--update", "--seed", "1", site=site, code=3)
    assert "kept 1 caption that was edited by hand" in done.stdout
    assert output.read_text().splitlines()[0] == f"{videos[0]}\tA person wrote this."
    other = reelscribe("caption", output, "-o", tmp_path / "out.lst", *SAY, site=site, code=1)
    assert "expected one of .jsonl, " in other.stderr
    assert other.stderr.rstrip().endswith(", .list")
