"""Cut a part of a video to its own file, in a process that reads videos: copied from a key frame on, or exact.

Both keep the times between frames, the rotation, the colour tags and the sound. What may be read is in `limits`; a part
that cannot be cut is a `Failure`, never an exception.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer, OutputContainer
from av.sidedata.sidedata import Type
from av.stream import Discard
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..types import Failure, TimeWindow
from .decode.clock import clock_of
from .decode.decoder import WAYS, MismatchError, frames_at
from .decode.opened import OpenedVideo
from .decode.timeline import Timeline
from .files.source import VideoSource, find_source
from .frames.moments import frames_in_window
from .limits import ReadLimits
from .processes.jobs import Doubt
from .reader import scan, tried, what_decodes
from .rejection import RejectedError, reason

QUALITY = {"crf": "18", "preset": "medium"}
"""Quality of re-encoded H.264: hard to tell from its source."""
CLOCK = Fraction(1, 90000)
"""Ticks of frames whose container has none."""
LEAD_SECONDS = 1.0
"""How long before a part sound is decoded, since an audio frame may need those before it."""
_KEPT_FORMATS = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "yuv420p10le", "yuv422p10le",
     "yuv444p10le", "gray", "gray10le"}
)  # fmt: skip
"""Pixel formats that the encoder takes as they are."""
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".ts": "mpegts",
           ".mts": "mpegts", ".m2ts": "mpegts"}  # fmt: skip
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
"""Number of channels to the encoder's layout."""
_AAC_RATES = frozenset({96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350})


@dataclass(frozen=True, slots=True)
class _Part:
    """What is to be cut."""

    source: VideoSource
    timeline: Timeline
    inside: NDArray[np.int64]
    """Positions of its frames on the timeline."""
    target: Path
    """The file to write."""

    @property
    def first(self) -> int:
        """Position of the first frame."""
        return int(self.inside[0])

    @property
    def end_seconds(self) -> float:
        """When the last frame ends."""
        after = int(self.inside[-1]) + 1
        times = self.timeline.seconds
        return float(times[after]) if after < len(times) else self.timeline.end_seconds

    @property
    def has_ticks(self) -> bool:
        """Whether the container's ticks distinguish its frames."""
        ticks = self.timeline.ticks
        return ticks is not None and bool((np.diff(ticks[self.inside]) > 0).all())

    def clock_offset(self, stream: VideoStream) -> float:
        """Seconds on the container's own clock at the timeline's zero."""
        ticks = self.timeline.ticks
        if ticks is None:
            return 0.0
        return float(int(ticks[0]) * (stream.time_base or CLOCK)) - float(self.timeline.seconds[0])


def attempt(
    video: Any, *, window: TimeWindow, limits: ReadLimits, target: Path, cut: str, plain: bool = False
) -> Failure | Doubt | None:
    """Try once to cut a part out of a video; the file appears under its name when it is complete.

    Args:
        video: an absolute path.
        window: the part, as for `read_clip`: its frames are those that a caption of it is about.
        limits: what is refused.
        target: the file to write; its suffix chooses the container.
        cut: a key of `CUTS`.
        plain: decode everything, without shortcuts.

    Returns:
        None if the file was written, else why not, as for `read_clip`.
    """
    unfinished = target.with_name(f"{target.stem}.part{target.suffix}")
    try:
        return tried(
            partial(_cut, video, window, limits, target, unfinished, cut=cut, plain=plain),
            limits=limits,
            failed=lambda exc: Doubt(
                Failure("unreadable", f"the part cannot be cut out: {type(exc).__name__}: {reason(exc)}")
            ),
        )
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _cut(
    video: Any, window: TimeWindow, limits: ReadLimits, target: Path, unfinished: Path, *, cut: str, plain: bool
) -> None:
    with closing(find_source(video, root=None, limits=limits)) as source:
        CUTS[cut](_part(source, window, limits, unfinished, plain=plain), plain)
    _sync(unfinished)
    unfinished.replace(target)


def _part(source: VideoSource, window: TimeWindow, limits: ReadLimits, target: Path, *, plain: bool) -> _Part:
    with closing(OpenedVideo(source)) as video:
        times, timeline = scan(video, window, limits)
    if timeline is None or plain:
        timeline = what_decodes(source, times)
    end = timeline.end_seconds
    inside = frames_in_window(timeline.seconds, fps=timeline.fps, window=window, end_seconds=end)
    if not len(inside):
        raise RejectedError("no_frames", f"no frame of {source.name} lies in the time window")
    return _Part(source, timeline, inside, target)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


# copied


def _copy(part: _Part, _plain: bool) -> None:
    """Copy the packets of video and sound, from the key frame before the part to the last that it needs."""
    ticks, keys = part.timeline.ticks, part.timeline.keys
    if ticks is None or part.timeline.jumps:
        why = "has no timestamps to cut by" if ticks is None else "has timestamps that jump"
        raise RejectedError("unreadable", f"{part.source.name} {why}: cut it exactly (--cut exact)")
    before = keys[keys <= part.first]
    key = int(before[-1]) if len(before) else 0
    start_ticks = int(ticks[key])
    with part.source.open() as (container, stream), _written(part.target) as output:
        base = stream.time_base or CLOCK
        start = float(start_ticks * base)
        end = part.end_seconds + part.clock_offset(stream)
        sounds = _sounds(container)
        outputs = {one.index: output.add_stream_from_template(one) for one in (stream, *sounds)}
        _seek(container, start)
        wanted = _Wanted(ticks, key, int(part.inside[-1]))
        sound_end = dict.fromkeys((one.index for one in sounds), False)
        for packet in _timed(_packets(container, [stream, *sounds]), stream.index):
            if packet.stream.index == stream.index:
                is_in = wanted.takes(packet)
            else:
                at = _packet_seconds(packet)
                is_in = at is not None and start <= at < end
                sound_end[packet.stream.index] |= at is not None and at >= end
            if is_in:
                _shift(packet, start)
                packet.stream = outputs[packet.stream.index]
                output.mux(packet)
            if wanted.is_done and all(sound_end.values()):
                break
        if not wanted.count:
            message = f"{part.source.name} yields no packets from its key frame on"
            raise RejectedError("unreadable", message, doubtful=True)


class _Wanted:
    """Which packets of the video are copied, in file order: those from the key frame to the last frame, those that
    these refer to, and if one of these is shown later, all up to it: no part has gaps.

    Args:
        ticks: times of all frames.
        key: position of the key frame.
        last: position of the last frame.
    """

    def __init__(self, ticks: NDArray[np.int64], key: int, last: int) -> None:
        self._ticks, self._first, self._last = ticks, int(ticks[key]), last
        self._missing = last - key + 1
        self._has_passed = False
        self.count = 0
        """Packets taken."""

    @property
    def is_done(self) -> bool:
        """Whether all have come, or none can come any more."""
        return self._missing <= 0 or self._has_passed

    def takes(self, packet: Any) -> bool:
        """Whether this packet is copied."""
        self._has_passed |= packet.dts > int(self._ticks[self._last])  # what is decoded later is shown later
        if self.is_done or packet.pts < self._first or (not self.count and packet.pts != self._first):
            return False
        if packet.pts > int(self._ticks[self._last]):
            last = int(np.searchsorted(self._ticks, packet.pts))
            self._missing += min(last, len(self._ticks) - 1) - self._last
            self._last = min(last, len(self._ticks) - 1)
        self.count += 1
        self._missing -= 1
        return True


def _timed(packets: Iterator[Any], video: int) -> Iterator[Any]:
    """Packets with both times: with reordered frames some files lack the decoding times of the first ones."""
    waiting: list[Any] = []
    for packet in packets:
        if packet.stream.index != video:
            yield packet
            continue
        if packet.pts is None:
            continue
        waiting.append(packet)
        if packet.dts is None:
            continue
        for number, one in enumerate(waiting):
            one.dts = packet.dts - (len(waiting) - 1 - number)
            yield one
        waiting.clear()


def _shift(packet: Any, start: float) -> None:
    ticks = round(start / float(packet.time_base))
    if packet.pts is not None:
        packet.pts -= ticks
    if packet.dts is not None:
        packet.dts -= ticks


def _packets(container: InputContainer, streams: list[Any]) -> Iterator[Any]:
    """Packets with content, up to the end or to where the file is damaged."""
    try:
        for packet in container.demux(streams):
            if packet.size:
                yield packet
    except (av.FFmpegError, OSError):
        return


def _packet_seconds(packet: Any) -> float | None:
    ticks = packet.pts if packet.pts is not None else packet.dts
    return None if ticks is None else float(ticks * packet.time_base)


# re-encoded


def _exact(part: _Part, plain: bool) -> None:
    """Encode exactly the frames of the part as H.264, and its sound, to the sample, as AAC."""
    for way in WAYS[-1:] if plain else WAYS:
        try:
            _encode(part, way)
        except MismatchError:
            continue
        return
    message = f"{part.source.name} decodes to other frames than its packets announce"
    raise RejectedError("unreadable", message, doubtful=True)


def _encode(part: _Part, way: Any) -> None:
    with closing(OpenedVideo(part.source)) as video:
        container, stream, following = video.from_start(None)
        offset = part.clock_offset(stream)
        frames = frames_at(container, stream, part.timeline, part.inside, way=way, following=following)
        first = next(frames)
        with _written(part.target) as output:
            made = _video_stream(part, stream, first, output)
            tracks = [_Track(part, index, offset) for index in range(len(container.streams.audio))]
            sounds = [(track, track.add_to(output)) for track in tracks if track.is_open]
            for position, frame in zip(part.inside.tolist(), _chain(first, frames), strict=True):
                output.mux(_until_end(part, made.encode(_as_encoded(part, position, frame, made))))
            output.mux(_until_end(part, made.encode(None)))
            for track, sound in sounds:
                for samples in track.frames():
                    output.mux(sound.encode(samples))
                output.mux(sound.encode(None))


def _as_encoded(part: _Part, position: int, frame: VideoFrame, made: Any) -> VideoFrame:
    """A frame in the form of the stream, with its time since the first one's."""
    plain = frame.reformat(width=made.width, height=made.height, format=made.pix_fmt)
    plain.time_base = made.codec_context.time_base
    plain.pts = _ticks(part, position, plain.time_base)
    plain.pict_type = 0  # the encoder chooses
    return plain


def _until_end(part: _Part, encoded: list[Any]) -> list[Any]:
    """The packets; the last frame stays as long as in its source."""
    for packet in encoded:
        base = packet.time_base
        if base and packet.pts == _ticks(part, int(part.inside[-1]), base):
            stays = part.end_seconds - float(part.timeline.seconds[part.inside[-1]])
            packet.duration = max(1, round(stays / float(base)))
    return encoded


def _chain(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    yield from rest


def _ticks(part: _Part, position: int, base: Fraction) -> int:
    """The time of a frame since the first one's."""
    ticks = part.timeline.ticks
    if ticks is not None and part.has_ticks:
        return int(ticks[position]) - int(ticks[part.first])
    seconds = part.timeline.seconds
    return round((float(seconds[position]) - float(seconds[part.first])) / float(base))


def _video_stream(part: _Part, source: VideoStream, frame: VideoFrame, output: OutputContainer) -> Any:
    """The stream to encode into, with everything that affects how the picture is shown."""
    rate = Fraction(part.timeline.fps).limit_denominator(1001)
    made: Any = output.add_stream("libx264", rate=rate, options=dict(QUALITY))
    made.width, made.height = frame.width, frame.height
    made.pix_fmt = _pixel_format(frame)
    context, given = made.codec_context, source.codec_context
    context.time_base = (source.time_base or CLOCK) if part.has_ticks else CLOCK
    context.thread_count = 1
    if given.sample_aspect_ratio:
        context.sample_aspect_ratio = given.sample_aspect_ratio
    for name in ("color_primaries", "color_trc", "colorspace", "color_range"):
        setattr(context, name, getattr(given, name))
    matrix = _display_matrix(frame)
    if matrix is not None:
        made.set_display_rotation(*matrix)
    return made


def _pixel_format(frame: VideoFrame) -> str:
    name = frame.format.name
    name = name if name in _KEPT_FORMATS else "yuv420p10le" if frame.format.components[0].bits > 8 else "yuv420p"
    is_odd = frame.width % 2 or frame.height % 2
    if is_odd and "42" in name:  # subsampled chroma has no value for the last row or column
        return "yuv444p10le" if "10" in name else "yuv444p"
    return name


def _display_matrix(frame: VideoFrame) -> tuple[int, bool, bool] | None:
    """Counter-clockwise rotation of the picture when shown, and whether it is mirrored; None: as stored."""
    side_data: Any = frame.side_data
    if Type.DISPLAYMATRIX not in side_data:
        return None
    a, b, _, c, d = np.frombuffer(side_data[Type.DISPLAYMATRIX], np.int32)[:5].tolist()
    is_mirrored = a * d - b * c < 0
    if is_mirrored:
        a, c = -a, -c
    degrees = round(np.degrees(np.arctan2(-b, a)))
    return degrees % 360, is_mirrored, False


class _Track:
    """The sound of a part, one track of it, cut to the sample.

    Args:
        part: what is cut.
        index: of the track among those of the file.
        offset: seconds of the container's clock where the timeline's is at zero.
    """

    def __init__(self, part: _Part, index: int, offset: float) -> None:
        self._part, self._index = part, index
        self._start = float(part.timeline.seconds[part.first]) + offset
        self._end = part.end_seconds + offset
        self._frames = self._decoded()
        self._first = next(self._frames, None)

    @property
    def is_open(self) -> bool:
        """Whether it can be decoded: a track that no decoder here supports is left out."""
        return self._first is not None

    def add_to(self, output: OutputContainer) -> Any:
        """A stream for it."""
        assert self._first is not None
        made: Any = output.add_stream("aac", rate=self._first.sample_rate)
        made.layout, made.format = self._first.layout.name, "fltp"
        return made

    def frames(self) -> Iterator[AudioFrame]:
        """Its samples, from 0 on."""
        if self._first is not None:
            yield self._first
            yield from self._frames

    def _decoded(self) -> Iterator[AudioFrame]:
        with self._part.source.open() as (container, video):
            video.discard = Discard.all
            stream: Any = container.streams.audio[self._index]
            stream.discard = Discard.none
            if stream.codec_context is None or not stream.codec_context.sample_rate:
                return
            clock = clock_of(container, stream)
            if not self._part.timeline.jumps:
                _seek(container, self._start - LEAD_SECONDS)
            rate = stream.codec_context.sample_rate
            rate = rate if rate in _AAC_RATES else 48000
            layout = _LAYOUTS.get(stream.codec_context.layout.nb_channels, "stereo")
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            for packet in _packets(container, [stream]):
                if clock is not None:
                    clock.set(packet)
                at = _packet_seconds(packet)
                if at is not None and at >= self._end:
                    break
                for frame in self._of(stream, packet, resampler):
                    yield from self._inside(frame, rate)

    def _of(self, stream: Any, packet: Any, resampler: av.AudioResampler) -> list[AudioFrame]:
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError:  # damaged sound is silent
            return []
        return [made for frame in frames for made in resampler.resample(frame)]

    def _inside(self, frame: AudioFrame, rate: int) -> Iterator[AudioFrame]:
        """The samples of a frame that belong to the part."""
        if frame.pts is None or frame.time_base is None:
            return
        place = round((float(frame.pts * frame.time_base) - self._start) * rate)
        skip, keep = max(0, -place), round((self._end - self._start) * rate) - place
        samples = frame.to_ndarray()[:, skip : max(keep, 0)]
        if not samples.shape[1]:
            return
        made = AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, np.float32), format="fltp", layout=frame.layout.name
        )
        made.sample_rate, made.time_base, made.pts = rate, Fraction(1, rate), place + skip
        yield made


# both


def _written(target: Path) -> OutputContainer:
    written: OutputContainer = av.open(str(target), "w", format=_MUXERS[target.suffix.lower()])
    return written


def _sounds(container: InputContainer) -> list[Any]:
    """The tracks of sound, to be read too."""
    sounds = [one for one in container.streams.audio if one.codec_context is not None]
    for one in sounds:
        one.discard = Discard.none
    return sounds


def _seek(container: InputContainer, seconds: float) -> None:
    """Seek to a packet of this time, or before; if that fails, reading starts at the beginning."""
    try:
        container.seek(max(0, int((seconds - LEAD_SECONDS) * av.time_base)), backward=True)
    except (av.FFmpegError, OSError):
        with suppress(av.FFmpegError, OSError):
            container.seek(0)


CUTS: dict[str, Callable[[_Part, bool], None]] = {"copy": _copy, "exact": _exact}
"""How a part is cut out."""
