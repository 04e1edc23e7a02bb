"""From an open file to frames: their times, their pixels."""
