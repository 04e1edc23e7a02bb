"""The libraries that read frames, each in the ways its users write: what is wanted in, uint8 RGB `[n, H, W, 3]` out.

A library is imported where it is used, so that a process holds the one it measures. Which way is the cheapest is not
known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.wanted import Wanted
from reelscribe.video.frames.policy import FramePolicy

Reader = Callable[[Wanted], np.ndarray | None]
"""None: it converts nothing."""


def reelscribe(wanted: Wanted, *, policy: FramePolicy) -> np.ndarray:
    """One call; the policy, not `wanted`, says which frames."""
    from reelscribe.types import Failure
    from reelscribe.video.reader import read_clip

    clip = read_clip(wanted.path, policy)
    if isinstance(clip, Failure):
        raise RuntimeError(clip.message)
    return clip.frames[: len(wanted.indices)]


def pyav(wanted: Wanted) -> np.ndarray:
    """Decode from the start to the last wanted frame, convert and scale the wanted ones in one step."""
    import av
    from av.video.reformatter import Interpolation

    size = {"height": wanted.height, "width": wanted.width, "interpolation": Interpolation.BICUBIC}
    chosen, frames = set(wanted.indices), []
    with av.open(wanted.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in chosen:
                frames.append(frame.reformat(format="rgb24", **size).to_ndarray())
            if index == wanted.indices[-1]:
                break
    return np.stack(frames)


def bare_decoder(wanted: Wanted, *, policy: FramePolicy) -> None:
    """What decoding alone costs: open the file, give the decoder the packets that reelscribe gives it, convert
    nothing. Other packets are passed over, and frames that no other refers to are left out, as there."""
    import av

    packets = _packets_needed(wanted.path, policy)
    left, mode = len(packets), None
    with av.open(wanted.path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_count = 1
        for packet in container.demux(stream):
            skips = packets.get(packet.pos)
            if skips is None:
                continue
            if skips != mode:
                context.skip_frame = mode = skips
            context.decode(packet)
            left -= 1
            if not left:
                break
        context.decode(None)


@cache
def _packets_needed(path: str, policy: FramePolicy) -> dict[int, str]:
    """Places in a file of the packets that reelscribe decodes, and what its decoder leaves out then."""
    from reelscribe.video.decode import decoder
    from reelscribe.video.reader import read_clip

    needed, inner = {}, decoder.decoded

    def watched(stream: Any, packet: Any) -> Any:
        if packet is not None and packet.size:
            needed[packet.pos] = str(stream.codec_context.skip_frame)
        return inner(stream, packet)

    decoder.decoded = watched
    try:
        read_clip(path, policy)
    finally:
        decoder.decoded = inner
    return needed


def opencv(wanted: Wanted, *, threads: int | None) -> np.ndarray:
    """`grab` every frame up to the last wanted one, `retrieve` those that are wanted."""
    capture, chosen, frames = _capture(wanted, threads), set(wanted.indices), []
    for index in range(wanted.indices[-1] + 1):
        capture.grab()
        if index in chosen:
            frames.append(_rgb(*capture.retrieve(), wanted))
    capture.release()
    return np.stack(frames)


def opencv_seek(wanted: Wanted, *, threads: int | None) -> np.ndarray:
    """Set `CAP_PROP_POS_FRAMES` before each wanted frame."""
    import cv2

    capture, frames = _capture(wanted, threads), []
    for index in wanted.indices:
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        frames.append(_rgb(*capture.read(), wanted))
    capture.release()
    return np.stack(frames)


def _capture(wanted: Wanted, threads: int | None) -> Any:
    import cv2

    if threads is None:
        return cv2.VideoCapture(wanted.path, cv2.CAP_FFMPEG)
    cv2.setNumThreads(threads)
    return cv2.VideoCapture(wanted.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])


def _rgb(found: bool, picture: np.ndarray, wanted: Wanted) -> np.ndarray:
    import cv2

    if not found:
        raise RuntimeError("a wanted frame does not come")
    return _scaled([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)], wanted)[0]


def _scaled(frames: Any, wanted: Wanted) -> np.ndarray:
    import cv2

    return np.stack([cv2.resize(one, (wanted.width, wanted.height), interpolation=cv2.INTER_CUBIC) for one in frames])


def decord(wanted: Wanted, *, scales: bool, threads: int = 1) -> np.ndarray:
    """`get_batch`, scaled by decord itself or afterwards; decoding on more than one thread costs more, 0 is its own
    choice."""
    from decord import VideoReader

    size = {"width": wanted.width, "height": wanted.height} if scales else {}
    frames = VideoReader(wanted.path, num_threads=threads, **size).get_batch(list(wanted.indices)).asnumpy()
    return frames if scales else _scaled(frames, wanted)


def torchcodec(wanted: Wanted, *, seek_mode: Any, scales: bool) -> np.ndarray:
    """`get_frames_at`, scaled by TorchCodec itself (bilinear, it has no other) or afterwards."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    transforms = [Resize((wanted.height, wanted.width))] if scales else None
    decoder = VideoDecoder(wanted.path, dimension_order="NHWC", seek_mode=seek_mode, transforms=transforms)
    frames = decoder.get_frames_at(list(wanted.indices)).data.numpy()
    return frames if scales else _scaled(frames, wanted)


PEERS: dict[str, dict[str, Reader]] = {
    "opencv": {"threads as set": partial(opencv, threads=None), "one thread": partial(opencv, threads=1)},
    "decord": {"scales": partial(decord, scales=True), "scaled afterwards": partial(decord, scales=False)},
    "torchcodec": {
        "exact, scales": partial(torchcodec, seek_mode="exact", scales=True),
        "exact, scaled afterwards": partial(torchcodec, seek_mode="exact", scales=False),
        "approximate, scales": partial(torchcodec, seek_mode="approximate", scales=True),
        "approximate, scaled afterwards": partial(torchcodec, seek_mode="approximate", scales=False),
    },
    "pyav": {"plain loop": pyav},
    "opencv_as_it_comes": {"threads as set": partial(opencv, threads=None)},
    "decord_as_it_comes": {"scaled afterwards": partial(decord, scales=False, threads=0)},
}
"""By name, then by the way it is used."""
SEEKING: dict[str, dict[str, Reader]] = {
    "opencv_seek": {"threads as set": partial(opencv_seek, threads=None), "one thread": partial(opencv_seek, threads=1)}
}
"""Ways that pay where few frames are wanted of a long file."""


def prefix(name: str, links: Path) -> list[str]:
    """What goes before the command of a process that runs this reader: TorchCodec finds the FFmpeg that PyAV brings.

    That FFmpeg has file names of its own, so links in a folder have the usual ones.
    """
    spec = find_spec("av")
    bundled = Path(spec.origin).parents[1] / "av.libs" if spec and spec.origin else Path("av.libs")
    if name != "torchcodec" or not bundled.is_dir():
        return []
    links.mkdir(parents=True, exist_ok=True)
    for library in chain(bundled.glob("libav*.so.*"), bundled.glob("libsw*.so.*")):
        usual = links / re.sub(r"-[0-9a-f]{8}(\.so\.\d+).*", r"\1", library.name)
        usual.unlink(missing_ok=True)
        usual.symlink_to(library)
    return ["env", f"LD_LIBRARY_PATH={links.resolve()}:{bundled}"]
