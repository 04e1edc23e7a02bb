"""What a user sees of a run: progress, and a summary at its end."""
