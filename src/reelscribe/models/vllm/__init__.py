"""Models run by vLLM's engine, started by this process."""
