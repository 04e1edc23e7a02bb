"""The table of text cases (`golden/text_semantics.json`), driven through the scripted captioner."""

import json
from pathlib import Path, PurePath

import pytest

from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.answering.selection import simhash

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "text_semantics.json").read_text("utf-8"))["cases"]
HASHES = json.loads((GOLDEN / "simhash.json").read_text("utf-8"))["hashes"]


class Script:
    """Answers as a case's `candidates` say, and keeps the prompts it was asked."""

    def __init__(self, candidates):
        self.candidates = candidates
        self.calls = []
        self.prompts = []
        self.systems = []

    def __call__(self, request, i):
        if request.id not in self.calls:
            self.calls.append(request.id)
            self.prompts.append(request.prompt)
            self.systems.append(request.system_prompt)
        if isinstance(self.candidates, list):
            return self.candidates[i]
        stem = PurePath(request.video).stem
        return self.candidates.format(video=stem, i=i, call=self.calls.index(request.id))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_text_semantics(case):
    script = Script(case["candidates"])
    op = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(script), **case["params"])
    before = json.dumps(case["input"])
    assert op.process_batched(case["input"]) == case["expected"]["output"]
    assert json.dumps(case["input"]) == before, "the caller's batch must stay as it was"
    assert [row for row, _, _ in op.failures] == [
        row for row in [case["expected"].get("error_on_sample")] if row is not None
    ]
    if "prompts" in case:
        assert script.prompts == case["prompts"]
    if "system_prompt" in case["params"]:
        assert set(script.systems) == {case["params"]["system_prompt"]}


@pytest.mark.parametrize("text", HASHES)
def test_simhash(text):
    assert simhash(text) == int(HASHES[text])
