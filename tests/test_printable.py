"""What is printed, logged or kept: nothing that a terminal acts on, and no credentials."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import reelscribe
from reelscribe import VideoCaptioningFromVLMMapper, cli
from reelscribe.data import Target
from reelscribe.errors import DataError, MissingExtraError
from reelscribe.printable import logger, names_user, one_line, printable, redacted
from reelscribe.runners.run.identity import RunIdentity, command_of
from reelscribe.stores import StoredPath
from reelscribe.types import Failure
from rows import jsonl, load

SECRET = "S3CRET"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:S3CRET@b/a.mp4", "s3://b/a.mp4"),
        ("s3://KEY:S3/CRET/S3CRET+x@b/a.mp4", "s3://b/a.mp4"),
        ("S3://KEY@b/a.mp4", "S3://b/a.mp4"),
        ("cannot read 'https://u:S3CRET@h:8443/a?x=1': no", "cannot read 'https://h:8443/a?x=1': no"),
        ("https://u:p@S3CRET@h/a", "https://h/a"),
        ("https://u:1234@h/a", "https://h/a"),
        ("https://u:S3 CRET@h/a", "https://h/a"),
        ("https://:S3CRET@h/a", "https://h/a"),
        ("simplecache::s3://K:S3CRET@b/a", "simplecache::s3://b/a"),
        ("https://u:S3CRET@h/a and gs://K:S3CRET@b", "https://h/a and gs://b"),
        ("https://h/a?X-Amz-Signature=S3CRET&X-Amz-Credential=S3CRET&n=1", "https://h/a?X-Amz-Signature=…&X-Amz-Credential=…&n=1"),
        ("https://h/a?sig=S3CRET#access_token=S3CRET", "https://h/a?sig=…#access_token=…"),
        ("https://h/a?AWSAccessKeyId=S3CRET&key=S3CRET", "https://h/a?AWSAccessKeyId=…&key=…"),
    ],
)  # fmt: skip
def test_credentials_are_left_out(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown
    assert SECRET not in printable(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/v1/@x",
        "http://localhost:8000",
        "http://[::1]:8000/v1",
        "hf://datasets/user/name@main/a.mp4?split=train&name=x",
        "s3://bucket/folder@2/a:b.mp4",
        "s3://arn:aws:s3:eu:1:accesspoint/n/a@b",
        "https://h/a?author=me&keyframe=3&page=2",
        "mail user:pw@host, not an address",
        "a/b@c:d.mp4",
    ],
)
def test_what_is_no_credential_stays(text):
    assert redacted(text) == text
    assert not names_user(text)


@given(st.text() | st.text().map(lambda text: f"https://{text}@h/{text}"))
def test_any_text_becomes_printable_and_stays_so(text):
    once = printable(text)
    assert once.isprintable()
    assert printable(once) == once
    assert one_line(text).isprintable()


def test_text_of_people_is_not_touched():
    for text in ("Ein Bär läuft.", "一只猫跳上桌子。", "ein Pfad/with blanks/файл.mp4", "🎬 ok"):
        assert printable(text) == text


def test_failures_and_errors_carry_no_credentials():
    failure = Failure("unreadable", "s3://K:S3CRET@b/a\x1b[2J\nis gone \udc80")
    assert failure.message == "s3://b/a\\x1b[2J\\nis gone \\udc80"
    assert copy.copy(failure) == pickle.loads(pickle.dumps(failure)) == failure
    for error in (
        DataError("https://u:S3CRET@h/a is gone"),
        MissingExtraError("https://u:S3CRET@h", extra="x", purpose="y"),
    ):
        assert SECRET not in str(error) + str(pickle.loads(pickle.dumps(error)))


def test_loggers_write_printable_lines(caplog):
    log = logger("reelscribe.test")
    assert logger("reelscribe.test") is log
    with caplog.at_level(logging.WARNING):
        log.warning("%s is %s", "https://u:S3CRET@h/a", "\x1b[2J")
    assert caplog.messages == ["https://h/a is \\x1b[2J"]


PRINTING = re.compile(r"(?:click\.echo|console\.print|(?<![\w.])print|logging\.getLogger)\(")
MAY_PRINT = {
    "cli.py": "say",
    "printable.py": "logger",
    "models/loading.py": "makes other packages quiet",
    "demo/run.py": "the demonstration, of its own clips and words",
}


def test_nothing_is_printed_or_logged_past_the_one_function():
    """A line of the source that prints names `printable`, or prints no text from elsewhere."""
    root = Path(reelscribe.__file__).parent
    own = ("console.print(table)", "report.recommended", "recommended: {settings}")
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if PRINTING.search(line) and "printable(" not in line and not any(one in line for one in own)
        and str(path.relative_to(root)) not in MAY_PRINT
    ]  # fmt: skip
    assert found == []


# a whole run

ADDRESSES = [
    "https://u:S3CRET@127.0.0.1/a.mp4",
    "s3://K:S3/S3CRET@bucket/b.mp4",
    "https://127.0.0.1/c.mp4?token=S3CRET",
]
HOSTILE = "a\x1b]0;owned\x07\x9b2J\u202e.mp4"


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("remote", [True, False])
def test_a_run_leaves_no_credentials_but_those_in_its_rows(tmp_path, remote):
    rows = jsonl(tmp_path / "in.jsonl", [{"id": one, "video": one} for one in ADDRESSES])
    output = tmp_path / "out.jsonl"
    options = ["--allow-remote"] if remote else []
    result = run("caption", rows, "-o", output, "--model", "reelscribe/shapes", "--max-read-seconds", 3, *options)
    assert result.exit_code == 3, result.output
    assert [row["video"] for row in load(output)] == ADDRESSES
    assert len(load(tmp_path / "out.jsonl.failures.jsonl")) == 3
    assert SECRET not in result.output
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path not in (rows, output)]
    assert [path.name for path in left if SECRET.encode() in path.read_bytes()] == []
    assert any(path.name == "journal.sqlite" for path in left)


def test_names_with_escape_sequences_reach_no_terminal(tmp_path):
    folder = tmp_path / "clips\x1b[31m"
    folder.mkdir()
    (folder / HOSTILE).write_bytes(b"no video")
    output = tmp_path / "out\x1b[2J.jsonl"
    result = run("caption", folder, "-o", output, "--model", "reelscribe/shapes")
    assert result.exit_code == 3
    again = run("caption", folder, "-o", output, "--model", "reelscribe/shapes", "--prompt", "\x9b2J other")
    assert again.exit_code == 1
    others = [
        run("caption", tmp_path / "\x1b[2Jgone.jsonl", "-o", output),
        run("caption", folder, "-o", output, "--\x1b[31m", "x"),
        run("\x1b[31m"),
        run("--\x1b[31m"),
        run("retry", tmp_path / "\x1b[2J.jsonl"),
        run("bench", folder, "--model", "reelscribe/shapes"),
    ]
    for one in (result, again, *others):
        assert all(line.isprintable() for line in one.output.splitlines()), one.output
        assert one.exception is None or isinstance(one.exception, SystemExit)


class OneAddress:
    """A source at an address, as far as an identity asks."""

    def __init__(self, url):
        self.path = self.folder = StoredPath(url)

    def files(self):
        return []


def test_the_identity_and_the_command_of_a_run_hold_no_credentials(tmp_path):
    operator = VideoCaptioningFromVLMMapper(
        "m", model_params={"base_url": ["http://u:S3CRET@h"]}, video_root="https://u:S3CRET@h/videos"
    )
    target = Target.of(tmp_path / "out.jsonl")
    with_key, without = (OneAddress(f"https://{user}h/rows.jsonl") for user in ("u:S3CRET@", ""))
    identity, other = (RunIdentity.of(operator, source, target, limit=None) for source in (with_key, without))
    command = command_of(operator, with_key, limit=None, failures=None)
    assert SECRET not in str((identity.as_dict(), command))
    assert identity == other
    assert identity.differences({**other.as_dict(), "rows": {**other.rows, "input": with_key.path.url}}) == []
    assert command["input_had_credentials"]
    assert not command_of(operator, without, limit=None, failures=None)["input_had_credentials"]


def test_a_store_is_never_shown_a_key_in_an_address():
    path = StoredPath("s3://K:S3/S3CRET@bucket/rows.jsonl")
    with pytest.raises(
        PermissionError, match=r"s3://bucket/rows.jsonl: a user or key in an address is not used"
    ) as told:
        path.exists()
    assert SECRET not in str(told.value)
