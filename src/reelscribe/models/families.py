"""The families of video models that were compared with transformers itself, and the results.

The results are in `families.json`, written by `tests/families/table.py` from the tests' own verdicts, and those of vLLM
in `families_vllm.json`, written by `tests/vllm_families.py` if vLLM is installed; nothing here loads a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError

RESULTS = Path(__file__).with_name("families.json")
"""File with the results."""
VLLM_RESULTS = Path(__file__).with_name("families_vllm.json")
"""File with those of vLLM."""
FRAMES = {
    "exact": "frames, times, sizes and tokens are those that the model's own processor chooses",
    "own rule": "the processor by itself takes every frame; reelscribe chooses how many, 2 a second up to a limit, and "
    "shows those that the processor chooses when it is asked for as many",
    "differs": "they are not",
}
"""Verdicts on frames, and their meaning."""
CAPTIONS = {
    "exact": "tensors, scores and greedy text are those of transformers' `generate` for the same frames",
    "refused": "the model is refused when it is loaded, with the reason",
    "fails": "the model loads, and every video fails with the reason",
}
"""Verdicts on captions, and their meaning."""
BATCHES = {
    "exact": "a batch of different videos and prompts writes what each writes alone",
    "differs": "it does not",
}
"""Verdicts on batches, and their meaning."""
CANDIDATES = {
    "one prefill": "candidates of a video share one pass over its prompt, and have the log-probabilities of `generate`",
    "repeated prompt": "the prompt is read once for each candidate",
    "fails": "a video with several candidates fails",
}
"""Verdicts on several candidates, and their meaning."""
VLLM = {
    "exact": "tokens of the prompt and, to three digits, scores are those of transformers",
    "close": "the same with what bfloat16 rounds, where vLLM has no other kernel",
    "differs": "tokens of the prompt or scores are not those of transformers",
    "alone": "vLLM captions it, transformers does not",
    "refused": "the model is refused when it is loaded, with the reason",
    "fails": "the model loads, and a video fails with the reason",
}
"""Verdicts on vLLM, and their meaning."""
COLUMNS: dict[str, Mapping[str, str]] = {
    "frames": FRAMES,
    "captions": CAPTIONS,
    "batches": BATCHES,
    "candidates": CANDIDATES,
    "vllm": VLLM,
}
"""Column of the table to its verdicts."""
_NOTHING = "–"


@dataclass(frozen=True, slots=True)
class ComparedFamily:
    """The results of one family."""

    name: str
    """Its `model_type`."""
    model: str
    """A name on the hub that people use."""
    verdicts: Mapping[str, str]
    """Column to verdict; a column without a result is missing."""
    because: str = ""
    """The message, if it is refused or fails."""
    packages: tuple[str, ...] = ()
    """Packages that it needs besides reelscribe's."""
    note: str = ""
    """A remark for its users, one sentence."""
    vllm_because: str = ""
    """The message, if vLLM refuses it or fails."""

    def verdict(self, column: str) -> str:
        """The verdict of a column; a dash if there is none."""
        return self.verdicts.get(column, _NOTHING)

    def lines(self, model: str) -> Iterator[str]:
        """The verdicts on this family."""
        yield f"{model} is of the family {self.name}"
        for column, verdict in self.verdicts.items():
            yield f"{column} {verdict}: {COLUMNS[column][verdict]}"
        yield from self.remarks

    @property
    def remarks(self) -> list[str]:
        """Remarks beyond the columns, in sentences."""
        needs = f"Needs `pip install {' '.join(self.packages)}`." if self.packages else ""
        reason = f"{self.verdict('captions').capitalize()}: {self.because}." if self.because else ""
        tried = "vLLM" if "vllm" in self.verdicts else "Not compared in vLLM"
        engine = f"{tried}: {self.vllm_because}." if self.vllm_because else ""
        return [remark for remark in (needs, reason, self.note, engine) if remark]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All families, and the versions they were compared with."""

    date: str
    """Day of the tests, as YYYY-MM-DD."""
    versions: Mapping[str, str]
    """Package to version."""
    families: tuple[ComparedFamily, ...]
    """The results of each."""

    @property
    def lines(self) -> Iterator[str]:
        """The table for a terminal."""
        with_versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield f"compared on {self.date} with {with_versions}"
        yield ""
        yield _line("family", "such as", COLUMNS)
        for one in self.families:
            yield _line(one.name, one.model, [one.verdict(column) for column in COLUMNS])
            for remark in one.remarks:
                yield f"    {remark}"
        yield ""
        for column, verdicts in COLUMNS.items():
            for verdict, meaning in verdicts.items():
                yield f"{column} {verdict}: {meaning}"

    def of_type(self, model_type: str) -> ComparedFamily:
        """The family of a `model_type`.

        Raises:
            ModelError: it was not compared.
        """
        for one in self.families:
            if one.name == model_type:
                return one
        raise ModelError(
            f"model type {model_type!r} is not among the {len(self.families)} that were compared with transformers; "
            f"it may work: try it on a few videos with --limit"
        )


def compared() -> Comparison:
    """The results that come with this version."""
    found = _read(RESULTS)
    vllm = _read(VLLM_RESULTS) if VLLM_RESULTS.exists() else {"versions": {}, "families": {}}
    engine = {name: version for name, version in vllm["versions"].items() if name.startswith("vllm")}
    families = tuple(_family(one, vllm["families"].get(one["name"], {})) for one in found["families"])
    return Comparison(date=found["date"], versions={**found["versions"], **engine}, families=families)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8")))


def _family(found: dict[str, Any], vllm: Mapping[str, Any]) -> ComparedFamily:
    verdict = vllm.get("verdict")
    note = vllm.get("note", "") if verdict in ("refused", "fails", "not run") else ""
    with_vllm = {**found["verdicts"], "vllm": verdict} if verdict in VLLM else found["verdicts"]
    packages = tuple(found.get("packages", ()))
    return ComparedFamily(**{**found, "verdicts": with_vllm, "packages": packages, "vllm_because": note})


def family_of(model: str) -> ComparedFamily:
    """The family of a model: a name on the hub, a local folder or a bundled one.

    Raises:
        ModelError: its config cannot be read, or its type was not compared.
    """
    from .chat import resolve_model
    from .loading import load_config, loading_errors, quiet_transformers

    with loading_errors(model), quiet_transformers():
        config = load_config(resolve_model(model), {"trust_remote_code": False})
    return compared().of_type(config.model_type)


def _line(name: str, model: str, verdicts: Iterable[str]) -> str:
    widths = (10, 10, 9, 17, 9)
    cells = "".join(f"{verdict:<{width}}" for verdict, width in zip(verdicts, widths, strict=True))
    return f"{name:<23}{cells}{model}".rstrip()
