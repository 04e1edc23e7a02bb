"""From what a model writes to the caption that is kept."""
