"""Read one file to one clip: the frames of a policy, upright, at the size the model will see, with the file's times.

A video that cannot be read is a `Failure`, never an exception. What may be read, and what it may cost, is in `limits`;
time and memory are bounded from outside, by the pool of reading processes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import SettingsError
from ..stores import StoredPath
from ..types import Clip, Failure, TimeWindow
from .decode.buffers import BUFFERS
from .decode.clock import may_jump
from .decode.decoder import WAYS, MismatchError, Shortcuts, frames_at
from .decode.endings import reaches_behind
from .decode.opened import OpenedVideo
from .decode.pixels import Look, RgbConverter, upright_size
from .decode.stills import picture_clip
from .decode.timeline import (
    PacketTimes,
    Timeline,
    decode_times,
    index_keys,
    packet_timeline,
    scan_packets,
    with_last_frame_until,
)
from .decode.tolerance import cheapest_near
from .files.source import VideoSource, find_source
from .frames.moments import FramePolicy, frames_in_window, lay_out, shown_frames, shown_size, span_seconds
from .frames.policy import Size
from .limits import DEFAULT_LIMITS, ReadLimits
from .process_memory import is_short
from .processes.jobs import Doubt
from .processes.transport import shared_frames
from .rejection import RejectedError, reason

__all__ = ["DEFAULT_LIMITS", "WHOLE", "ReadLimits", "attempt", "read_clip"]

MIN_SHARE = 0.5
"""Least share of a video's frames, and of its announced length, that must be present."""
WHOLE = TimeWindow()
LENGTH_EACH = frozenset({"mov", "avi", "mxf"})
"""Containers, by FFmpeg's name up to the first comma, that store a length per stream."""
ENDS = frozenset({"nut", "asf", "wtv"})
"""Containers for which FFmpeg reports the end of the last stream, counted from zero, as the length of all."""
INSTANT = Fraction(1, 100)

Allocate = Callable[..., NDArray[Any]]
T = TypeVar("T")


def read_clip(
    video: Any,
    policy: FramePolicy,
    *,
    window: TimeWindow = WHOLE,
    limits: ReadLimits = DEFAULT_LIMITS,
    root: Path | StoredPath | None = None,
) -> Clip | Failure:
    """Decode the frames of one video that a policy selects.

    Args:
        video: a local path, a `file://` or, if allowed, `https://`, `s3://`, `gs://` or `hf://` URL, bytes, or
            `{'path': …, 'bytes': …}`.
        policy: which frames, at which size.
        window: the part to look at, in seconds on the file's clock. MPEG-TS and MPEG-PS count from their start.
        limits: what is refused.
        root: folder that relative paths are relative to; None: the working directory.

    Returns:
        The clip, padded to the policy's temporal patch; or the failure (`not_found`, `unreadable`,
        `no_video_stream`, `no_frames`, `not_allowed`, `too_large`, `too_long`, `timeout` of a fetch, `out_of_memory`,
        `bad_sample`). A damaged file gives the frames that can be decoded, unless less than half of it is present.
    """
    try_once = partial(attempt, video, policy, window=window, limits=limits, root=root)
    began, attempts = time.monotonic(), 1
    outcome = try_once()
    if isinstance(outcome, Doubt):
        outcome, attempts = try_once(plain=True), 2
    if isinstance(outcome, Clip):
        return outcome
    failure = outcome.failure if isinstance(outcome, Doubt) else outcome
    return replace(failure, attempts=attempts, seconds=time.monotonic() - began)


def attempt(
    video: Any,
    policy: FramePolicy,
    *,
    window: TimeWindow = WHOLE,
    limits: ReadLimits = DEFAULT_LIMITS,
    root: Path | StoredPath | None = None,
    plain: bool = False,
    allocate: Allocate = BUFFERS.empty,
) -> Clip | Failure | Doubt:
    """Try once to read a video; the rest is as for `read_clip`.

    Args:
        video: as for `read_clip`.
        policy: likewise.
        window: likewise.
        limits: likewise.
        root: likewise.
        plain: decode everything, without shortcuts.
        allocate: gives the memory that frames are written to, for a shape and a type.
    """
    return tried(
        partial(_read, video, policy, window=window, limits=limits, root=root, plain=plain, allocate=allocate),
        limits=limits,
        failed=lambda exc: Failure("unreadable", f"the video cannot be opened: {type(exc).__name__}: {reason(exc)}"),
    )


def tried(
    work: Callable[[], T], *, limits: ReadLimits, failed: Callable[[Exception], Failure | Doubt]
) -> T | Failure | Doubt:
    """The result of some work on a file, or why it failed: if memory is short, that is the reason.

    Args:
        work: what is to be done.
        limits: which limit on memory holds.
        failed: makes a failure of an unforeseen exception: damaged files reach every corner of the libraries, and each
            raises its own.

    Raises:
        SettingsError: the settings are wrong, whatever the file is.
    """
    try:
        return work()
    except RejectedError as exc:
        outcome = exc.outcome
    except SettingsError:
        raise
    except MemoryError:
        return _out_of_memory(limits)
    except Exception as exc:
        outcome = failed(exc)
    return _out_of_memory(limits) if _looks_damaged(outcome) and is_short() else outcome


def _read(
    video: Any,
    policy: FramePolicy,
    *,
    window: TimeWindow,
    limits: ReadLimits,
    root: Path | StoredPath | None,
    plain: bool,
    allocate: Allocate,
) -> Clip:
    with closing(find_source(video, root=root, limits=limits)) as source:
        try:
            clip = picture_clip(source, policy, window=window, limits=limits, allocate=allocate)
            if clip is not None:
                return clip
            with closing(OpenedVideo(source)) as opened:
                times, timeline = scan(opened, window, limits)
                read = _ClipReader(opened, policy, window, times, allocate)
                return _decode(read, times, None if plain else timeline)
        finally:
            source.check_arrived()


def attempt_shared(video: Any, policy: FramePolicy, **settings: Any) -> Clip | Failure | Doubt:
    """`attempt`, with frames where another process can see them."""
    return attempt(video, policy, **settings, allocate=shared_frames)


def _looks_damaged(outcome: Failure | Doubt) -> bool:
    return isinstance(outcome, Doubt) or outcome.kind in ("unreadable", "no_frames")


def _out_of_memory(limits: ReadLimits) -> Doubt:
    return Doubt(Failure("out_of_memory", f"reading the video takes more than {limits.memory_text}"))


def scan(video: OpenedVideo, window: TimeWindow, limits: ReadLimits) -> tuple[PacketTimes, Timeline | None]:
    """What the header and the packets contain; nothing is decoded."""
    source = video.source
    container, stream, max_kept_bytes = video.to_scan()
    _check_header(source, container, stream)
    times = scan_packets(
        container,
        stream,
        max_seconds=limits.max_source_seconds,
        max_packets=limits.max_source_frames,
        keys=index_keys(stream) if source.leaves_media_out(container, stream) else None,
        max_kept_bytes=max_kept_bytes,
    )
    source.check_frames(times.count)
    if times.encrypted:
        raise RejectedError("unreadable", f"{source.name} is encrypted")
    timeline = packet_timeline(times, container, stream)
    if timeline is not None:
        announced = _announced_end(container, stream, begin=float(timeline.seconds[0]), times=times)
        timeline = _until_announced(source, container, stream, timeline, announced, window)
        source.check_seconds(timeline.duration_seconds)
    return times, timeline


def _decode(read: _ClipReader, times: PacketTimes, timeline: Timeline | None) -> Clip:
    """The clip by the cheapest way that works for the file; without a timeline by decoding everything."""
    try:
        clip = _by_timeline(read, timeline) if timeline is not None else None
        return _by_decoding(read, times) if clip is None else clip
    except (RejectedError, SettingsError, MemoryError):
        raise
    except Exception as exc:  # damaged files reach every corner of the decoders, and each has its own exception
        message = f"{read.video.source.name} cannot be decoded: {type(exc).__name__}: {reason(exc)}"
        raise RejectedError("unreadable", message, doubtful=True) from exc


def _by_timeline(read: _ClipReader, timeline: Timeline) -> Clip | None:
    for way in WAYS:
        try:
            return read.clip(timeline, way=way)
        except MismatchError:
            continue
    return None


def _by_decoding(read: _ClipReader, times: PacketTimes) -> Clip:
    source = read.video.source
    timeline = what_decodes(source, times)
    with source.open(times_only=True) as (container, stream):
        announced = _announced_end(container, stream, begin=float(timeline.seconds[0]), times=times)
        if announced is not None:
            announced = announced._replace(is_own=False)  # frames that are lost may have been its last ones
        timeline = _until_announced(source, container, stream, timeline, announced, read.window)
    source.check_seconds(timeline.duration_seconds)
    return read.clip(timeline)


def _check_header(source: VideoSource, container: InputContainer, stream: VideoStream) -> None:
    size = stream.codec_context.height, stream.codec_context.width
    source.check_pixels(*(size if all(size) else source.header_size()))
    announced = _announced_end(container, stream)
    source.check_seconds(None if announced is None else announced.seconds)
    source.check_frames(stream.frames)


class _AnnouncedEnd(NamedTuple):
    """The end of a video stream according to the file's header."""

    seconds: float
    """On the file's clock."""
    is_own: bool = True
    """Whether it is the stream's, so that its last picture stays until then."""


def _announced_end(
    container: InputContainer, stream: VideoStream, *, begin: float = 0.0, times: PacketTimes | None = None
) -> _AnnouncedEnd | None:
    """The end of the video stream according to the file's header, if its start is known. A container's own length
    counts only for its sole stream, though FFmpeg copies it to all that have none; a guess from a clock that may jump,
    or, in raw streams, from a bit rate does not count."""
    if may_jump(container) or Flags.no_timestamps in Flags(container.format.flags):
        return None
    whole = container.duration / av.time_base if container.duration else None
    end = _matroska_end(stream)
    if end is not None:  # a tag may be left over from a longer file
        return _AnnouncedEnd(end, is_own=whole is None or end <= whole + INSTANT)
    if (
        container.format.name == "avi" and stream.frames and stream.average_rate
    ):  # FFmpeg shortens the length of a cut one
        return _AnnouncedEnd(begin + float(stream.frames / stream.average_rate))
    is_sole = len(container.streams) == 1
    if not stream.duration or not stream.time_base:
        return _AnnouncedEnd(whole) if whole is not None and is_sole else None
    length = stream.duration * stream.time_base
    if container.format.name.split(",")[0] in ENDS:
        return _AnnouncedEnd(float(length), is_own=is_sole)
    if _is_containers(length, container, begin=begin):
        return None
    return _AnnouncedEnd(begin + float(length), is_own=_lets_stay(container, stream, times))


def _lets_stay(container: InputContainer, stream: VideoStream, times: PacketTimes | None) -> bool:
    """Whether a last picture may stay until the end of the stream's length. In MXF all frames are equally long; in mp4
    the length is that of decoding, of frames that an edit list leaves out too."""
    kind = container.format.name.split(",")[0]
    if kind == "mov" and times is not None:
        return not times.reordered and stream.frames <= times.count
    return kind != "mxf"


def _is_containers(length: Fraction, container: InputContainer, *, begin: float) -> bool:
    """Whether the length of a stream with a known start may be only that of its container, which FFmpeg copies to
    streams without one. If each has one, a length that would end after everything does not count."""
    if len(container.streams) == 1 or container.duration is None:
        return False
    first = (container.start_time or 0) / av.time_base
    has_each = container.format.name.split(",")[0] in LENGTH_EACH and begin <= first + INSTANT
    return not has_each and abs(length - Fraction(container.duration, av.time_base)) < INSTANT


def _matroska_end(stream: VideoStream) -> float | None:
    """The end of the stream, counted from zero, that writers of Matroska leave in a tag as `00:00:04.000000000`."""
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
    return end if math.isfinite(end) else None


def _until_announced(
    source: VideoSource,
    container: InputContainer,
    stream: VideoStream,
    timeline: Timeline,
    announced: _AnnouncedEnd | None,
    window: TimeWindow,
) -> Timeline:
    """The timeline up to the end that the file announces, where its last picture stays until then.

    Raises:
        RejectedError: the file was cut before half of the window.
    """
    if announced is None:
        return timeline
    longer = with_last_frame_until(timeline, announced.seconds)
    if longer is timeline:
        return timeline
    with source.raw() as file:
        if not reaches_behind(container, stream, file, size=source.size()):
            return longer if announced.is_own else timeline
    _check_enough(source, timeline, longer.end_seconds, window)
    return timeline


def _check_enough(source: VideoSource, timeline: Timeline, end_seconds: float, window: TimeWindow) -> None:
    """Refuse a file that was cut before half of the window."""
    begin = float(timeline.seconds[0])
    start = max(begin, window.start_seconds if window.start_seconds is not None else begin)
    end = min(end_seconds, window.end_seconds if window.end_seconds is not None else math.inf)
    there = timeline.end_seconds - start
    if end > start and there < MIN_SHARE * (end - start):
        raise RejectedError(
            "unreadable",
            f"{source.name} is cut short: only {max(there, 0):.1f} of {end - start:.1f} seconds can be read",
        )


def what_decodes(source: VideoSource, times: PacketTimes) -> Timeline:
    decoded = decode_times(source, times)
    if decoded is None:
        raise RejectedError("no_frames", f"no frame of {source.name} can be decoded", doubtful=True)
    frames = len(decoded.timeline.seconds)
    if frames < MIN_SHARE * (frames + decoded.lost):
        message = f"{source.name} is damaged: {frames} of {frames + decoded.lost} frames can be decoded"
        raise RejectedError("unreadable", message, doubtful=True)
    return decoded.timeline


@dataclass(frozen=True, slots=True)
class _ClipReader:
    """Chooses frames on a timeline and decodes them."""

    video: OpenedVideo
    policy: FramePolicy
    window: TimeWindow
    times: PacketTimes
    allocate: Allocate

    def clip(self, timeline: Timeline, *, way: Shortcuts = WAYS[-1]) -> Clip:
        """The clip of the frames chosen on this timeline.

        Raises:
            RejectedError: the window is empty or a frame too large.
            MismatchError: a chosen frame does not come out of the decoder, or frames come in another order.
        """
        shown = shown_frames(
            self.policy, timeline.seconds, fps=timeline.fps, window=self.window, end_seconds=timeline.end_seconds
        )
        if not len(shown):
            raise RejectedError("no_frames", f"no frame of {self.video.source.name} lies in the time window")
        shown = self._cheapest(timeline, shown)
        frames, source_size = self._pixels(timeline, shown, way=way)
        return Clip(
            frames=frames,
            pts_seconds=timeline.seconds[shown],
            duration_seconds=timeline.duration_seconds,
            source_fps=timeline.fps,
            source_height=source_size[0],
            source_width=source_size[1],
            window_seconds=None if self.window == WHOLE else self._window_seconds(timeline),
        )

    def _cheapest(self, timeline: Timeline, shown: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames to decode for these moments: within the tolerance, and inside the window."""
        tolerance = self.policy.time_tolerance_seconds
        if not tolerance:
            return shown
        chosen, order = np.unique(shown, return_inverse=True)
        near = cheapest_near(timeline, chosen, seconds=tolerance)
        inside = self._inside(timeline)
        return np.where((near >= inside[0]) & (near <= inside[-1]), near, chosen)[order]

    def _inside(self, timeline: Timeline) -> NDArray[np.int64]:
        end = timeline.end_seconds
        return frames_in_window(timeline.seconds, fps=timeline.fps, window=self.window, end_seconds=end)

    def _window_seconds(self, timeline: Timeline) -> float:
        inside, end = self._inside(timeline), timeline.end_seconds
        return span_seconds(timeline.seconds, inside, fps=timeline.fps, window=self.window, end_seconds=end)

    def _pixels(
        self, timeline: Timeline, shown: NDArray[np.int64], *, way: Shortcuts
    ) -> tuple[NDArray[np.uint8], Size]:
        """The frames as uint8 `[T, H, W, 3]`, as they are shown, and the size that most of them have at their source,
        upright."""
        chosen = np.unique(shown)
        decoding, stream = self._decoding(timeline, chosen, way=way)
        first = next(decoding)
        look = Look.of(self.policy, stream)
        size = upright_size(first, aspect=look.aspect)
        self.video.source.check_pixels(first.height, first.width)
        pixels, sizes = self._written(chain([first], decoding), shown, source_size=size, look=look)
        usual = _most_frequent(sizes)
        if usual != size:
            del pixels  # before there is memory for as many again
            decoding, _ = self._decoding(timeline, chosen, way=way)
            pixels, _ = self._written(decoding, shown, source_size=usual, look=look)
        return pixels, usual

    def _decoding(
        self, timeline: Timeline, chosen: NDArray[np.int64], *, way: Shortcuts
    ) -> tuple[Iterator[VideoFrame], VideoStream]:
        container, stream, following = self.video.from_start(self._kept())
        return frames_at(container, stream, timeline, chosen, way=way, following=following), stream

    def _kept(self) -> list[Packet[VideoStream]] | None:
        """The packets that were kept, once: then they are released."""
        kept, self.times.packets = self.times.packets, None
        return kept

    def _written(
        self, decoding: Iterator[VideoFrame], shown: NDArray[np.int64], *, source_size: Size, look: Look
    ) -> tuple[NDArray[np.uint8], Counter[Size]]:
        """The pixels of frames, with repeated ones copied, and the number of frames of each size."""
        height, width = shown_size(self.policy, shown, *source_size)
        converter = RgbConverter(height=height, width=width, source_size=source_size, look=look)
        pixels = self.allocate((len(shown), height, width, 3), np.uint8)
        sizes: Counter[Size] = Counter()
        for index, frame in enumerate(decoding):
            self.video.source.check_pixels(frame.height, frame.width)
            sizes[upright_size(frame, aspect=look.aspect)] += 1
            converter.write(frame, pixels[index])
        lay_out(pixels, shown)
        return pixels, sizes


def _most_frequent(sizes: Counter[Size]) -> Size:
    """The size of most frames, the larger one on a tie."""
    return max(sizes, key=lambda size: (sizes[size], size[0] * size[1], size))
