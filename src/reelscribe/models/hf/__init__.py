"""Models run by transformers in this process; needs the extra `hf`."""

from ...errors import needing

with needing("hf", purpose="running a model on this machine"):
    import torch  # noqa: F401
    import transformers  # noqa: F401
