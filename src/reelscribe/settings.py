"""Single definition of every option of the operator and of a run: type, bounds, description, flag, help panel, scope.

The command's options, the operator's signature, the names a recipe may use, a run's identity and the tables of the
operator page are derived from these models. `--help` shows a docstring's first paragraph; the operator page shows all
of it.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from enum import Enum, StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation, ValidationError
from pydantic_core import InitErrorDetails

from .answering.selection import SELECTORS
from .errors import SettingsError
from .models.captioner import DEFAULT_MODEL, DEFAULT_THINKING_TOKENS, GenerationConfig
from .rows.tokens import SpecialTokens
from .video.limits import DEFAULT_LIMITS

MAX_ROW_BYTES = 256 * 2**20
"""Default limit on the bytes of one row, as stored and decompressed."""
FEWEST_ROWS = 100
"""Rows from which a share of failures is meaningful."""
LONGEST_VALUE = 500
"""Most characters of a value that a message shows."""


class Panel(StrEnum):
    """Headings of the command's help, in order."""

    OUTPUT = "Output"
    MODEL = "Model"
    CAPTIONS = "Prompt and candidates"
    GENERATION = "Generation"
    FRAMES = "Frames shown to the model"
    PICTURE = "Part and picture of the video"
    FIELDS = "Fields of the rows"
    ACCESS = "Videos that may be read"
    READING = "Reading videos"
    RUN = "Run"
    CLUSTER = "Ray cluster"
    OTHER = "Other"


class Scope(Enum):
    """What changing a value affects in a run that was already started."""

    ANSWER = "answer"
    """What the model writes: earlier answers are not reused."""
    ROWS = "rows"
    """What is asked about a video, whether it is read, or how the answer is used: the request carries these values."""
    NOTHING = "nothing"
    """Speed, or where a run stops, but not the output: a run resumes with any value."""


class Stricter(Enum):
    """Which values reject videos that others accept: after such a change answers are not kept."""

    LOWER = "lower"
    """A number below the earlier one; None is no limit."""
    OTHER = "other"
    """Any value other than the earlier one; None is no restriction."""
    OFF = "off"
    """False after true."""


@dataclass(frozen=True, slots=True)
class Option:
    """A setting's properties besides its name, type, default and description."""

    scope: Scope
    """What changing it affects."""
    flag: str = ""
    """Option of the command; empty: available only in Python and recipes."""
    panel: Panel = Panel.OTHER
    """Panel of the command's help that shows it."""
    _: KW_ONLY
    help: str = ""
    """Help text of the flag, if it means the opposite of the field or sets only one part of it."""
    metavar: str = ""
    """Placeholder for its value in the help; empty: N, X, or the choices."""
    default: str = ""
    """The default as the help shows it; empty: the default itself, and nothing for None and flags."""
    choices: str = ""
    """`module:table`; the table's names are the choices."""
    parse: Callable[[str], Any] | None = None
    """Converts the command-line text to the value."""
    repeats: bool = False
    """Whether the option may be repeated to build a list."""
    bare: str | None = None
    """The value if the option is given without one; None: a value is required."""
    stricter: Stricter | None = None
    """Which values are stricter; None: it rejects no videos."""
    retry: bool = True
    """Whether `reelscribe retry` accepts it, provided that another value affects only what failed."""
    later: bool = False
    """Added after the first version: part of a run's identity only if set, so that earlier runs still resume."""
    is_live: bool = False
    """Whether it holds a Python object, which a recipe, command or journal cannot express."""
    needs_own_run: bool = False
    """Whether a retry takes it from a journal only if the same user started the run: it names code or folders."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of a model with its `Option`."""

    name: str
    """Its name, the same in public and internal code."""
    hint: Any
    """Its type with bounds, without the `Option`."""
    default: Any
    """Its default."""
    text: str
    """Its docstring."""
    option: Option
    """Its other properties."""
    inside: str = ""
    """The parameter it belongs to: `model_params` or `sampling_params`."""

    @property
    def summary(self) -> str:
        """The part of the description that the command's help shows."""
        return " ".join(self.text.partition("\n\n")[0].split())

    @property
    def whole_text(self) -> str:
        """The whole description, as the operator page shows it."""
        return " ".join(self.text.split())

    @property
    def fits_retry(self) -> bool:
        """Whether `reelscribe retry` accepts it: another value affects only what failed."""
        changes_nothing = self.option.scope is Scope.NOTHING or self.option.stricter is not None
        return self.option.retry and changes_nothing


ANSWER, ROWS, NOTHING = Scope.ANSWER, Scope.ROWS, Scope.NOTHING
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


def _known_selector(mode: str) -> str:
    if mode not in SELECTORS:
        raise ValueError(f"must be one of {', '.join(map(repr, SELECTORS))}")
    return mode


KeepMode = Annotated[str, AfterValidator(_known_selector)]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


class Settings(_Model):
    """Parameters of the operator. The first nine may be given by position."""

    hf_model: Annotated[str, Option(ANSWER, "--model", Panel.MODEL, metavar="NAME")] = DEFAULT_MODEL
    """VLM that accepts videos: a name on the Hugging Face hub, or a local folder. `reelscribe/shapes` is the bundled
    demonstration model.

    Also accepted: `name@revision`, the address of its page, and a LoRA or another adapter."""
    enable_vllm: Annotated[bool, Option(ANSWER, "--vllm", Panel.MODEL)] = False
    """Run the model with vLLM instead of transformers.

    Requires the extra `vllm` (`pip install '.[vllm]'` in a clone). vLLM starts its own processes, so a script must do
    its work under `if __name__ == "__main__":`."""
    caption_num: Annotated[PositiveInt, Option(ROWS, "--candidates", Panel.CAPTIONS)] = 1
    """How many candidate captions to generate for each video (M)."""
    keep_candidate_mode: Annotated[
        KeepMode, Option(ROWS, "--keep", Panel.CAPTIONS, choices="reelscribe.answering.selection:SELECTORS")
    ] = "random_any"
    """Which candidates to keep.

    `'random_any'`: a random one. `'similar_one_simhash'`: the one most similar to the original caption. `'all'`: all of
    them."""
    keep_original_sample: Annotated[
        bool,
        Option(
            ROWS,
            "--drop-original",
            Panel.CAPTIONS,
            help="Drop original rows, and rows that failed, from the output.",
        ),
    ] = True
    """Whether the original sample stays in the output. If false, only generated samples do."""
    prompt: Annotated[str | None, Option(ROWS, "--prompt", Panel.CAPTIONS, metavar="TEXT")] = None
    """One prompt for all samples.

    None or empty: "Describe the input video in 1-2 sentences."
    """
    prompt_key: Annotated[str | None, Option(ROWS, "--prompt-key", Panel.CAPTIONS, metavar="FIELD")] = None
    """Field with a sample's own prompt; takes precedence over `prompt`.

    If its value is not a string, or the sample lacks it, `prompt` is used."""
    model_params: Annotated[
        dict[str, Any] | None,
        Option(
            ANSWER,
            "--model-param",
            Panel.MODEL,
            help="A parameter for loading the model; may be repeated.",
            repeats=True,
        ),
    ] = None
    """Parameters for loading the model; they depend on the back end."""
    sampling_params: Annotated[
        dict[str, Any] | None,
        Option(
            ANSWER,
            "--sampling-param",
            Panel.GENERATION,
            help="Another generation parameter; may be repeated.",
            repeats=True,
        ),
    ] = None
    """Generation parameters, e.g. `{'temperature': 0.9, 'top_p': 0.95}`."""

    text_key: Annotated[str, Option(ROWS, "--text-key", Panel.FIELDS, metavar="FIELD")] = "text"
    """Field with the text."""
    video_key: Annotated[
        str, Option(ROWS, "--video-key", Panel.FIELDS, metavar="FIELD", default="videos, else video")
    ] = "videos"
    """Field with the list of videos.

    A video is a path, bytes, or `{'path': …, 'bytes': …}`."""
    system_prompt: Annotated[str | None, Option(ROWS, "--system-prompt", Panel.CAPTIONS, metavar="TEXT")] = None
    """System message for every request."""
    caption_key: Annotated[
        str | None,
        Option(ROWS, "--caption-key", Panel.FIELDS, metavar="FIELD", default="captions, for rows with one video"),
    ] = None
    """Also write kept captions to this field.

    A list in video order on generated samples; null on originals."""
    failure_key: Annotated[str | None, Option(ROWS, "--failure-key", Panel.FIELDS, metavar="FIELD")] = None
    """Also write the first failure of each sample to this field.

    Its `kind`, `message` and `video_index`, or null."""
    finish_reason_key: Annotated[str | None, Option(ROWS, "--finish-reason-key", Panel.FIELDS, metavar="FIELD")] = None
    """Also write why each caption ended to this field: `stop`, or `length` if it was cut off at the token limit.

    A list in video order on generated samples; null on originals."""
    reasoning_key: Annotated[str | None, Option(ROWS, "--reasoning-key", Panel.FIELDS, metavar="FIELD", later=True)] = (
        None
    )
    """Also write the reasoning of kept captions to this field.

    A list in video order on generated samples, with null for a caption that has none; null on originals."""
    thinking: Annotated[Literal["off", "on"], Option(ANSWER, "--thinking", Panel.GENERATION, later=True)] = "off"
    """Whether a model reasons before it answers, if its chat template has a switch for that.

    A model without a switch behaves as usual. `'on'` is an error for a model whose template does not mention
    reasoning."""
    thinking_tokens: Annotated[PositiveInt, Option(ANSWER, "--thinking-tokens", Panel.GENERATION, later=True)] = (
        DEFAULT_THINKING_TOKENS
    )
    """Longest reasoning, in tokens; it does not count towards `max_tokens`.

    Longer reasoning is ended, and the answer follows."""
    seed: Annotated[int, Option(ROWS, "--seed", Panel.GENERATION)] = 0
    """Random seed.

    Together with a sample's text, videos and prompt it determines the sample's result."""
    captioner: Annotated[Any, Option(ANSWER, is_live=True, needs_own_run=True)] = None
    """A captioner, or a captioner spec, to use instead of `hf_model`."""
    backend: Annotated[
        str | None,
        Option(
            ANSWER,
            "--backend",
            Panel.MODEL,
            default="server with --server, vllm with --vllm, else hf, which is transformers",
            choices="reelscribe.models.backends:BACKENDS",
            later=True,
        ),
    ] = None
    """Back end that runs the model; installed packages may provide more.

    `hf` (transformers), `vllm`, `server`, `scripted` (for tests). None: `server` if `model_params` contains `base_url`,
    otherwise `vllm` or `hf` depending on `enable_vllm`."""
    video_token: Annotated[str, Option(ROWS)] = SpecialTokens.video
    """Marks a video in the text."""
    image_token: Annotated[str, Option(ROWS)] = SpecialTokens.image
    """Marks an image in the text."""
    audio_token: Annotated[str, Option(ROWS)] = SpecialTokens.audio
    """Marks an audio clip in the text."""
    eoc_token: Annotated[str, Option(ROWS)] = SpecialTokens.eoc
    """Ends a chunk of the text."""
    fps: Annotated[PositiveFloat | None, Option(ANSWER, "--fps", Panel.FRAMES, default="the model's")] = None
    """Frames to sample per second of video, for every family.

    None: the rule of the model's own processor; if that would take every frame of a file, 2 per second, at most 32."""
    num_frames: Annotated[PositiveInt | None, Option(ANSWER, "--num-frames", Panel.FRAMES)] = None
    """Sample this many frames over the whole video instead; excludes `fps`."""
    min_frames: Annotated[PositiveInt | None, Option(ANSWER, "--min-frames", Panel.FRAMES)] = None
    """Fewest frames to sample, if the video has that many."""
    max_frames: Annotated[PositiveInt | None, Option(ANSWER, "--max-frames", Panel.FRAMES)] = None
    """Most frames to sample."""
    min_pixels: Annotated[PositiveInt | None, Option(ANSWER, "--min-pixels", Panel.FRAMES)] = None
    """Smallest frame shown to the model, in pixels (height x width); the model's own budget takes precedence.

    An error for models whose processor resizes every frame to a fixed size."""
    max_pixels: Annotated[PositiveInt | None, Option(ANSWER, "--max-pixels", Panel.FRAMES)] = None
    """Largest frame shown to the model, in pixels (height x width).

    An error for models whose processor resizes every frame to a fixed size. For Qwen2.5-VL and Qwen2-VL, 602112 is the
    limit of their authors' reader; the default here is that of transformers and vLLM, about 20 times as many."""
    time_tolerance_seconds: Annotated[
        Seconds | None, Option(ANSWER, "--time-tolerance", Panel.FRAMES, metavar="S", default="0, exact frames")
    ] = None
    """Allow a frame within this many seconds of the requested timestamp if it is cheaper to decode.

    The model is given the frame's true timestamp. 0 or None: exact frames."""
    pixel_aspect: Annotated[
        Literal["stored", "display"] | None,
        Option(ANSWER, "--pixel-aspect", Panel.PICTURE, default="stored", later=True),
    ] = None
    """How non-square pixels are shown.

    `'stored'`: as squares, like the models' own processors, so people in a wide-screen DVD look a third too thin.
    `'display'`: with the aspect ratio in the file, like players. None: `'stored'`."""
    tone_map: Annotated[bool | None, Option(ANSWER, "--tone-map", Panel.PICTURE, later=True)] = None
    """Show HDR video (PQ and HLG) as SDR (BT.709).

    The curve is FFmpeg's `mobius`; SDR video is unchanged. None: no; HDR looks as pale as its stored values, like with
    the models' own processors."""
    deinterlace: Annotated[bool | None, Option(ANSWER, "--deinterlace", Panel.PICTURE, later=True)] = None
    """Show only the first field in time of interlaced frames, instead of both at once.

    Applies to frames that are marked as interlaced. None: no, like the models' own processors."""
    fit: Annotated[bool | None, Option(ANSWER, "--fit", Panel.FRAMES, later=True)] = None
    """If a video exceeds the model's context, show as many of its frames as fit, evenly spaced; otherwise it fails as
    `too_many_tokens`.

    The prompt's tokens and `max_tokens` count. An error with a server, whose context length is unknown; with vLLM the
    limit is `max_model_len`."""
    start_seconds: Annotated[Seconds | None, Option(ROWS, "--start", Panel.PICTURE, metavar="S")] = None
    """Start of the part of each video to caption, in the file's own timestamps."""
    end_seconds: Annotated[Seconds | None, Option(ROWS, "--end", Panel.PICTURE, metavar="S")] = None
    """End of the part of each video to caption."""
    start_key: Annotated[str, Option(ROWS)] = "start_seconds"
    """Field with a sample's own `start_seconds`: a number, or a list with one per video."""
    end_key: Annotated[str, Option(ROWS)] = "end_seconds"
    """Field with a sample's own `end_seconds`."""
    video_root: Annotated[str | None, Option(ANSWER)] = None
    """Folder that relative video paths are relative to.

    None: the current folder; for the commands, the folder of the data file."""
    max_source_seconds: Annotated[
        PositiveFloat,
        Option(ROWS, "--max-source-seconds", Panel.ACCESS, metavar="S", default="24 hours", stricter=Stricter.LOWER),
    ] = DEFAULT_LIMITS.max_source_seconds
    """A longer video fails as `too_long`."""
    max_source_pixels: Annotated[
        PositiveInt,
        Option(ROWS, "--max-source-pixels", Panel.ACCESS, default="8192 x 8192", stricter=Stricter.LOWER),
    ] = DEFAULT_LIMITS.max_source_pixels
    """A video with larger frames (height x width) fails as `too_large`."""
    max_source_frames: Annotated[
        PositiveInt,
        Option(ROWS, "--max-source-frames", Panel.ACCESS, default="10 million", stricter=Stricter.LOWER),
    ] = DEFAULT_LIMITS.max_source_frames
    """A video with more frames fails as `too_long`."""
    max_source_bytes: Annotated[
        PositiveInt | None,
        Option(ROWS, "--max-source-bytes", Panel.ACCESS, default="no limit", stricter=Stricter.LOWER),
    ] = None
    """A larger file fails as `too_large`.

    None: no limit."""
    max_read_seconds: Annotated[PositiveFloat, Option(NOTHING, "--max-read-seconds", Panel.READING, metavar="S")] = (
        DEFAULT_LIMITS.max_read_seconds
    )
    """A video that takes longer to read fails as `timeout`, after a second try."""
    max_read_memory_mib: Annotated[PositiveInt, Option(NOTHING, "--max-read-memory", Panel.READING)] = (
        DEFAULT_LIMITS.max_read_memory_mib
    )
    """A video that takes more memory to read, in MiB, fails as `out_of_memory`, after a second try. Linux only."""
    media_root: Annotated[
        str | None,
        Option(ROWS, "--media-root", Panel.ACCESS, metavar="DIR", default="anywhere", stricter=Stricter.OTHER),
    ] = None
    """Only read files inside this folder, with links resolved; any other path fails as `not_allowed`.

    None: no restriction."""
    allow_remote: Annotated[bool, Option(ROWS, "--allow-remote", Panel.ACCESS, stricter=Stricter.OFF)] = False
    """Allow videos at `https://`, `s3://`, `gs://` and `hf://` addresses; otherwise they fail as `not_allowed`.

    `https://` addresses must be on the public internet; the others are read with the user's own fsspec
    configuration."""
    allow_images: Annotated[bool, Option(ROWS, "--allow-images", Panel.ACCESS, stricter=Stricter.OFF, later=True)] = (
        False
    )
    """Caption still pictures as one-frame clips, in folders too; otherwise they fail as `not_allowed`.

    JPEG, PNG, WebP, BMP, TIFF, AVIF, JPEG 2000 and PNM, oriented by their EXIF data. Animated pictures are videos
    either way."""
    video_cache: Annotated[
        str | None,
        Option(
            NOTHING,
            "--video-cache",
            Panel.READING,
            metavar="DIR",
            default="not kept",
            needs_own_run=True,
        ),
    ] = None
    """Folder that caches videos read from addresses.

    None: no cache."""
    video_cache_mib: Annotated[PositiveInt, Option(NOTHING, "--video-cache-mib", Panel.READING)] = (
        DEFAULT_LIMITS.video_cache_mib
    )
    """Most MiB kept in `video_cache`; the least recently used files are removed first."""
    batch_size: Annotated[
        PositiveInt | None,
        Option(
            NOTHING,
            "--batch-size",
            Panel.MODEL,
            help="Most videos that the model, or each server, processes at once.",
        ),
    ] = None
    """Samples per batch that `run` takes from a `datasets` data set, and the most videos that the model processes at
    once."""
    num_proc: Annotated[
        PositiveInt | None, Option(NOTHING, "--workers", Panel.READING, default="by demand, up to the number of cores")
    ] = None
    """Number of processes that read videos.

    None: two at first, and more while the model waits for clips, up to the number of cores."""
    prefetch_mib: Annotated[
        PositiveInt | None,
        Option(NOTHING, "--prefetch-mib", Panel.READING, default="128 per reading process"),
    ] = None
    """Most MiB of frames to read ahead of the model.

    None: 128 per reading process."""
    accelerator: Annotated[Literal["cpu", "cuda", "mps"] | None, Option(NOTHING)] = None
    """Device of the model.

    None: the best available one. An error with a server, which chooses its own device."""
    skip_op_error: Annotated[bool, Option(NOTHING)] = True
    """If false, a batch with a failed sample raises `FailedSamplesError` once it is finished."""

    BY_POSITION: ClassVar[int] = 9
    """Number of parameters of the contract, which may be given by position."""

    def values(self) -> dict[str, Any]:
        """The parameters by name, in order."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def part(self, kind: type) -> dict[str, Any]:
        """The values for the fields of a dataclass."""
        return {one.name: getattr(self, one.name) for one in fields(kind)}


class ModelParts(_Model):
    """Keys of `model_params` that have their own command options."""

    base_url: Annotated[
        str | list[str] | None, Option(ANSWER, "--server", Panel.MODEL, metavar="URL", repeats=True)
    ] = None
    """Send videos to the model on this OpenAI-compatible server, e.g. http://localhost:8000/v1; repeat it to distribute
    them over several servers. `hf_model` may be omitted if the servers serve one model."""
    device: Annotated[str | None, Option(ANSWER, "--device", Panel.MODEL, metavar="DEVICE", default="best")] = None
    """Device that runs the model: cpu, cuda, cuda:1, mps."""
    dtype: Annotated[str | None, Option(ANSWER, "--dtype", Panel.MODEL, metavar="DTYPE")] = None
    """Data type of the model: bfloat16, float16, float32."""


SAMPLING_OPTIONS = {
    "max_tokens": Option(ANSWER, "--max-tokens", Panel.GENERATION),
    "temperature": Option(ANSWER, "--temperature", Panel.GENERATION),
    "top_p": Option(ANSWER, "--top-p", Panel.GENERATION),
    "top_k": Option(ANSWER, "--top-k", Panel.GENERATION),
}
"""Keys of `sampling_params` that have their own command options; `GenerationConfig` has their bounds and
descriptions."""


class HasCounts(Protocol):
    """Counts of a run's rows."""

    rows_in: int
    """Rows so far."""
    failed_rows: int
    """Failed rows among them."""


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many rows may fail before a run stops."""

    rows: int | None = None
    """At most this many; None: any number."""
    share: float | None = None
    """At most this share of the rows, 0 to 1; None: any share. Checked from `FEWEST_ROWS` rows on, and at the end."""

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Parse `100` or `2.5%`.

        Raises:
            SettingsError: it is neither.
        """
        number, percent, rest = text.strip().partition("%")
        try:
            if percent and not rest and 0 <= float(number) <= 100:
                return cls(share=float(number) / 100)
            if not percent and int(number) >= 0:
                return cls(rows=int(number))
        except ValueError:
            pass
        raise SettingsError(
            f"a failure limit must be a number of rows, such as 100, or a share, such as 2%; got {text!r}"
        )

    def is_passed(self, counts: HasCounts, *, at_end: bool = False) -> bool:
        """Whether more rows failed than allowed."""
        if self.rows is not None and counts.failed_rows > self.rows:
            return True
        enough = at_end or counts.rows_in >= FEWEST_ROWS
        return self.share is not None and enough and counts.failed_rows > self.share * counts.rows_in


class RunSettings(_Model):
    """How a run treats its input and output.

    Raises:
        SettingsError: a value breaks a rule.
    """

    format: Annotated[
        str | None,
        Option(ROWS, "--format", Panel.OUTPUT, choices="reelscribe.data:BY_NAME", default="by the suffix"),
    ] = None
    """Format of an output folder: tar shards, a .txt next to each video with metadata.jsonl, or a saved data set."""
    with_videos: Annotated[bool, Option(ROWS, "--with-videos", Panel.OUTPUT)] = False
    """Include the videos in .tar files, webdataset shards and saved data sets, or copy them to a videofolder."""
    cut: Annotated[
        Literal["copy", "exact"] | None,
        Option(ROWS, "--cut", Panel.OUTPUT, default="the whole video is copied"),
    ] = None
    """With `with_videos`, for rows about a part of a video: cut the part out for the videofolder, as a copy that starts
    at the key frame before it, or exactly, by re-encoding."""
    limit: Annotated[PositiveInt | None, Option(ROWS, "--limit", Panel.RUN)] = None
    """Stop after the first N rows."""
    failures: Annotated[
        Path | None,
        Option(NOTHING, "--failures", Panel.RUN, metavar="FILE", default="OUTPUT.failures.jsonl", retry=False),
    ] = None
    """File for failures, .jsonl or .parquet."""
    overwrite: Annotated[bool, Option(NOTHING, "--overwrite", Panel.RUN, retry=False)] = False
    """Start from scratch and replace an existing output."""
    update: Annotated[bool, Option(NOTHING, "--update", Panel.RUN, retry=False)] = False
    """If settings or the input changed since the run started, redo only what that affects and keep the other
    captions."""
    recheck: Annotated[bool, Option(NOTHING, "--recheck", Panel.RUN)] = False
    """Caption videos again if they were replaced under the same name since they were captioned (by size and
    modification time)."""
    discard_edits: Annotated[bool, Option(NOTHING, "--discard-edits", Panel.RUN, default="they are kept")] = False
    """Discard captions that were edited by hand in the output."""
    max_row_bytes: Annotated[PositiveInt, Option(NOTHING, "--max-row-bytes", Panel.RUN, default="256 MiB")] = (
        MAX_ROW_BYTES
    )
    """Stop at an input row larger than this many bytes when decompressed."""
    max_failures: Annotated[
        FailureLimit,
        Option(
            NOTHING,
            "--max-failures",
            Panel.RUN,
            metavar="N|P%",
            default="no limit",
            parse=FailureLimit.parse,
        ),
    ] = FailureLimit()
    """Stop with exit code 4 when more rows fail than this number, or this share (from 100 rows on)."""
    retry: SkipValidation[Collection[str] | None] = None
    """Retry videos that failed with one of these kinds (empty: with any kind); None: do not retry."""
    changed: SkipValidation[Collection[str]] = ()
    """Parameters that may differ from those of the run that is retried."""
    part_rows: PositiveInt = 8192
    """Input rows per part of the output."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as exc:
            raise SettingsError(one_line(exc)) from exc


def captioner_range(text: str) -> tuple[int, int]:
    """Parse the minimum and maximum number of captioners from `4` or `1:8`.

    Raises:
        SettingsError: it is neither.
    """
    fewest, colon, most = text.partition(":")
    try:
        numbers = int(fewest), int(most if colon else fewest)
    except ValueError:
        numbers = (0, 0)
    if not 1 <= numbers[0] <= numbers[1]:
        raise SettingsError(f"captioners must be a number, such as 4, or a range, such as 1:8; got {text!r}")
    return numbers


class ClusterSettings(_Model):
    """Which cluster a run uses, and how much of it."""

    ray: Annotated[str | None, Option(NOTHING, "--ray", Panel.CLUSTER, metavar="[ADDRESS]", bare="local")] = None
    """Run on the Ray cluster at this address, or auto; without an address, start a cluster on this machine for the run.
    If you omit the address, put `ray` last or before another option."""
    ray_captioners: Annotated[
        tuple[int, int] | None,
        Option(
            NOTHING,
            "--ray-captioners",
            Panel.CLUSTER,
            metavar="N|MIN:MAX",
            default="1; with GPUs, as many as fit",
            parse=captioner_range,
        ),
    ] = None
    """Number of captioners on the cluster."""
    ray_gpus: Annotated[
        Seconds | None, Option(NOTHING, "--ray-gpus", Panel.CLUSTER, default="1, or tensor_parallel_size")
    ] = None
    """GPUs per captioner; may be a fraction or several."""


# derived from the models above


@cache
def settings_of(model: type[BaseModel], *, inside: str = "") -> dict[str, Setting]:
    """A model's fields that have an `Option`, by name."""
    hints, found = _hints(model), {}
    for name, field in model.model_fields.items():
        option = next((one for one in typing.get_args(hints[name])[1:] if isinstance(one, Option)), None)
        if option is not None:
            default, text = field.get_default(call_default_factory=True), field.description or ""
            found[name] = Setting(name, _without_option(hints[name]), default, text, option, inside)
    return found


@cache
def _hints(model: type[BaseModel]) -> dict[str, Any]:
    return typing.get_type_hints(model, include_extras=True)


def _without_option(hint: Any) -> Any:
    inner, *metadata = typing.get_args(hint)
    rest = [one for one in metadata if not isinstance(one, Option)]
    return Annotated[inner, *rest] if rest else inner


def operator_settings() -> dict[str, Setting]:
    """The operator's parameters by name, in the order of its signature."""
    return settings_of(Settings)


def part_settings() -> dict[str, Setting]:
    """Keys of `model_params` and `sampling_params` that have their own command options, by name."""
    parts = dict(settings_of(ModelParts, inside="model_params"))
    for name, option in SAMPLING_OPTIONS.items():
        field = GenerationConfig.model_fields[name]
        parts[name] = Setting(
            name, _hints(GenerationConfig)[name], field.default, field.description or "", option, "sampling_params"
        )
    return parts


def command_settings() -> dict[str, Setting]:
    """All settings that have command options, by name, in panel order."""
    known: dict[str, Setting] = {}
    for name, setting in operator_settings().items():  # a parameter's own keys come before it
        known |= {part: one for part, one in part_settings().items() if one.inside == name}
        known[name] = setting
    known |= {**settings_of(RunSettings), **settings_of(ClusterSettings)}
    shown = [(name, one) for name, one in known.items() if one.option.flag]
    return dict(sorted(shown, key=lambda pair: list(Panel).index(pair[1].option.panel)))


def parameter_names() -> list[str]:
    """The operator's parameters that plain values can set, in signature order."""
    return [name for name, one in operator_settings().items() if not one.option.is_live]


def signature() -> inspect.Signature:
    """The operator's signature: the parameters of the contract by position, then the others by keyword."""
    kinds = [inspect.Parameter.POSITIONAL_OR_KEYWORD] * Settings.BY_POSITION
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                kinds[number] if number < len(kinds) else inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=one.hint,
            )
            for number, (name, one) in enumerate(operator_settings().items())
        ]
    )


def argument_texts() -> str:
    """The operator's parameters with their descriptions, as a docstring lists them."""
    return "\n".join(f"    {name}: {one.whole_text}" for name, one in operator_settings().items())


def read_settings(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Settings:
    """Check the operator's arguments.

    Raises:
        pydantic.ValidationError: an unknown argument, a wrong type, or a value out of range.
    """
    names = list(operator_settings())
    wrong: list[InitErrorDetails] = [
        {"type": "unexpected_positional_argument", "loc": (number,), "input": value}
        for number, value in enumerate(args)
        if number >= Settings.BY_POSITION
    ]
    wrong += [
        {"type": "unexpected_keyword_argument", "loc": (name,), "input": value}
        for name, value in kwargs.items()
        if name not in names
    ]
    given = dict(zip(names, args, strict=False))
    wrong += [
        {"type": "multiple_argument_values", "loc": (name,), "input": kwargs[name]} for name in given if name in kwargs
    ]
    if wrong:
        raise ValidationError.from_exception_data("VideoCaptioningFromVLMMapper", wrong)
    return Settings(**given, **kwargs)


def counted(values: Mapping[str, Any], scope: Scope | None = None) -> dict[str, Any]:
    """The plain values among parameters that are part of a run's identity.

    Args:
        values: the operator's parameters by name, or some of them.
        scope: only those with this scope.
    """
    known = operator_settings()
    return {
        name: value
        for name, value in values.items()
        if (one := known[name]) and not one.option.is_live and scope in (None, one.option.scope)
        if not (one.option.later and value in (one.default, ""))
    }


def is_stricter(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the new parameters reject videos that the old ones accept."""
    return any(
        _is_stricter(one.option.stricter, before.get(name, one.default), now.get(name, one.default))
        for name, one in operator_settings().items()
        if one.option.stricter is not None
    )


def _is_stricter(how: Stricter, before: Any, now: Any) -> bool:
    if how is Stricter.OFF:
        return bool(before) and not now
    if now is None or now == before:
        return False
    return how is Stricter.OTHER or before is None or now < before


def choices_of(setting: Setting) -> list[str] | None:
    """The names a setting can take, if it is an enumeration."""
    if setting.option.choices:
        module, _, table = setting.option.choices.partition(":")
        return list(getattr(importlib.import_module(module), table))
    kinds = [kind for kind in (setting.hint, *typing.get_args(setting.hint)) if typing.get_origin(kind) is Literal]
    return list(typing.get_args(kinds[0])) if kinds else None


# messages


def shown(value: Any) -> str:
    """A value as a message shows it, truncated if long."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def one_line(exc: ValidationError) -> str:
    """Pydantic's errors as `parameter: rule; got value`.

    >>> one_line(error)
    "caption_num: input should be greater than 0; got 0"
    """
    return " | ".join(
        f"{'.'.join(map(str, error['loc']))}: {_rule(error['msg'])}; got {shown(error['input'])}"
        for error in exc.errors()
    )


def _rule(message: str) -> str:
    """Pydantic's message, to be embedded in ours."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
