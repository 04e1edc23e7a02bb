"""The test double: a captioner whose words come from a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import PurePath

from ..types import Candidate, CaptionRequest, CaptionResult, Clip, Failure
from ..video.frames.moments import FramePolicy
from .captioner import ModelSpec
from .written import parted

Script = Callable[[CaptionRequest, int], str]


class ScriptedCaptioner:
    """Writes `fn(request, i)` as candidate i; `request.video` is the video's value as the sample has it.

    An exception of `fn` becomes a failure of that video. With a `policy` the videos are read first, as for a model, and
    those that cannot be read fail.

    >>> captioner = ScriptedCaptioner(lambda request, i: f"caption {i} of {request.video}")
    """

    def __init__(self, fn: Script, *, policy: FramePolicy | None = None) -> None:
        self.policy = policy
        """How each video is read; None: no file is opened."""
        self._fn = fn

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> ScriptedCaptioner:
        """A captioner that answers with the spec's `template` option, filled with `video` (stem), `i` and `prompt`."""
        template = str(spec.options.get("template", "{video}{i}"))
        return cls(_TemplateScript(template))

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """One result per request, in order."""
        for request, _ in clips:
            yield self._answer(request)

    def _answer(self, request: CaptionRequest) -> CaptionResult:
        try:
            texts = [self._fn(request, i) for i in range(request.num_candidates)]
        except Exception as exc:  # the script plays the model: its errors belong to the video
            return CaptionResult(request.id, failure=Failure("model_error", f"{type(exc).__name__}: {exc}"[:300]))
        return CaptionResult(request.id, tuple(_candidate(text) for text in texts))

    def close(self) -> None:
        """Nothing to free."""


def _candidate(text: str) -> Candidate:
    """A text as from a model: reasoning in marks is not part of the caption."""
    one = parted(Candidate(text, tokens=len(text.split())))
    if one.reasoning is None:
        return one
    return replace(one, tokens=len(one.text.split()), reasoning_tokens=len(one.reasoning.split()))


class _TemplateScript:
    """A picklable script over a format template."""

    def __init__(self, template: str) -> None:
        self._template = template

    def __call__(self, request: CaptionRequest, i: int) -> str:
        stem = PurePath(request.video).stem if isinstance(request.video, str) else "video"
        return self._template.format(video=stem, i=i, prompt=request.prompt)
