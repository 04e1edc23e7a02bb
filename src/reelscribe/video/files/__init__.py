"""From the video value of a row to an open file."""
