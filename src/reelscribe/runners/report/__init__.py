"""What a user sees of a run: progress, and a final summary."""
