"""The file to name in a recipe's `custom_operator_paths`, where Data-Juicer does not find the operator by itself.

Data-Juicer loads such a file under its own name, which for `data_juicer.py` would be that of Data-Juicer: hence this
one. It also works from a clone that is not installed.
"""

import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

if find_spec("reelscribe") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import reelscribe.data_juicer
import reelscribe.data_juicer_pyav

if not entry_points(group="data_juicer.ops", name="reelscribe"):
    reelscribe.data_juicer_pyav.adapt_ray_workers()
