"""A real vLLM server with the bundled checkpoint on loopback, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from reelscribe.models.chat import BUNDLED_MODELS

MODEL = "reelscribe/shapes"
START_SECONDS = 240
# Chunked prefill is off because vLLM 0.32 on a CPU dies of a request that has a seed and is read in two steps.
ARGUMENTS = (
    "--model", str(BUNDLED_MODELS[MODEL]), "--served-model-name", MODEL, "--host", "127.0.0.1", "--dtype", "float32",
    "--enforce-eager", "--max-model-len", "4096", "--max-num-batched-tokens", "8192", "--no-enable-chunked-prefill",
    "--mm-processor-cache-gb", "0", "--kv-cache-memory-bytes", str(1 << 29), "--trust-request-mm-kwargs",
)  # fmt: skip


class VLLMServer:
    """Can be started, ended, and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *ARGUMENTS, "--port", str(self._port)]
        environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/models", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        self.kill()
        raise RuntimeError(f"the server did not start:\n{self._log.read_text(errors='replace')[-4000:]}")

    def answered(self) -> int:
        """Chat requests it has answered since the first start."""
        return self._log.read_text(errors="replace").count('"POST /v1/chat/completions HTTP/1.1" 200')

    def kill(self) -> None:
        """End it and all its processes, at once."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._process = None


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
