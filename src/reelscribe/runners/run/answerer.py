"""Answerers of a run's requests: the model on this machine, or another one that fills the journal with answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...data.input import Input
from ...models import server_addresses
from ...models.captioner import captioner_notes
from ...operator import VideoCaptioningFromVLMMapper
from ...pipeline import Operator
from ...rows.plan import Planner
from ...settings import RunSettings
from ...stores import AnyPath
from ...types import CaptionRequest, CaptionResult, Sample
from ..report.progress import Progress
from ..report.summary import RunSummary
from .identity import RunIdentity
from .journal import Journal
from .own_files import OwnFiles

Known = Callable[[CaptionRequest, Sample], CaptionResult | None]
"""Returns the earlier answer to a request about a row, if any."""

SHOWN_SERVERS = 3
"""Most addresses shown in the line at the start."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be answered, and where the answers go."""

    operator: VideoCaptioningFromVLMMapper
    """Provides the model and the readers."""
    planner: Planner
    """Plans the requests about a row."""
    root: AnyPath
    """Folder that relative video paths are relative to."""
    input: Input
    """The rows, and what is known about them."""
    journal: Journal
    """Stores the answers."""
    settings: RunSettings
    """Settings of the run."""
    progress: Progress
    """Receives the progress of the run."""
    summary: RunSummary
    """The summary, printed at the end."""
    leave_out: OwnFiles | None = None
    """Files in the input's folder that are the run's own."""


class Answerer(Protocol):
    """Answers the requests of a run; methods in call order."""

    loads_model: bool
    """Whether the model is loaded in this process, so that its revision may be known only then."""

    def recover(self) -> None:
        """Bring answers of an earlier session into the journal, before anything in it is set aside."""

    def settle(self) -> None:
        """Called once the journal holds exactly the earlier answers that are still valid."""

    def make_ready(self, identity: RunIdentity, known: Known) -> Operator:
        """Get ready to answer.

        Args:
            identity: the identity that answers are tied to.
            known: looks up answers of earlier sessions.

        Returns:
            The operator for requests that remain unanswered.
        """

    def report(self) -> None:
        """Add the cost of answering to the summary, once the rows are through the pipe."""

    def progress_made(self) -> str | None:
        """Progress of a run that ends early before any row is done; None: nothing."""

    def end(self) -> None:
        """Called once the output has its final name."""


MakeAnswerer = Callable[[Work], Answerer]


class LocalAnswerer:
    """The operator's own model, in this process."""

    loads_model = True

    def __init__(self, work: Work) -> None:
        self._work = work

    def recover(self) -> None:
        """Nothing to do: everything is in the journal."""

    def settle(self) -> None:
        """See `recover`."""

    def make_ready(self, identity: RunIdentity, known: Known) -> Operator:  # noqa: ARG002
        """Load the model now, so that its time is not counted as captioning."""
        operator, summary = self._work.operator, self._work.summary
        began = time.monotonic()
        servers = operator_servers(operator)
        self._work.progress.say(f"connecting to {servers}" if servers else f"loading {summary.model or 'the model'}")
        operator.start()
        summary.model = model_name(operator)
        summary.load_seconds = time.monotonic() - began
        return operator

    def report(self) -> None:
        """Add the captioner's own notes."""
        self._work.summary.engine = captioner_notes(self._work.operator.captioner)

    def progress_made(self) -> None:
        """Nothing to add to the count of rows."""

    def end(self) -> None:
        """Nothing to clean up."""


def model_name(operator: VideoCaptioningFromVLMMapper) -> str | None:
    """The model that will be loaded; None if the operator was given a captioner object, or its server's model is not
    known yet."""
    return operator.served_model or (operator.spec.model or None if operator.spec is not None else None)


def operator_servers(operator: VideoCaptioningFromVLMMapper) -> str:
    """Addresses of the servers that run the model, for a message; empty if there are none."""
    addresses = server_addresses(operator.spec) if operator.spec is not None else []
    return ", ".join(addresses[:SHOWN_SERVERS]) + (
        f" and {len(addresses) - SHOWN_SERVERS} more" if len(addresses) > SHOWN_SERVERS else ""
    )
