"""From model output to the kept caption."""
