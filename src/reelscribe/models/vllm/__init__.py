"""Models run by vLLM's engine; needs the extra `vllm`, which brings torch too."""

from ...errors import needing

with needing("vllm", purpose="enable_vllm (--vllm)"):
    import torch  # noqa: F401
