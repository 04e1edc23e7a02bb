"""A run on a Ray cluster in a process of its own, to be killed by test_ray_data: ADDRESS INPUT OUTPUT LOG."""

from __future__ import annotations

import sys
from pathlib import Path

import ray_words
from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.runners.ray.run import caption_file_ray
from reelscribe.runners.ray.settings import RaySettings

if __name__ == "__main__":
    address, source, output, log = sys.argv[1:]
    operator = VideoCaptioningFromVLMMapper(captioner=ray_words.captioner(log, seconds=0.02))
    cluster = RaySettings(address=address, gpus=1, rows_per_block=4, rows_per_file=16)
    caption_file_ray(operator, Path(source), Path(output), cluster=cluster)
