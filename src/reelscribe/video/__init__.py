"""From a file to what the model sees: which moments, which size, and the frames themselves."""
