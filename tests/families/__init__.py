"""Tiny checkpoints of every family of video models that transformers loads: one row and one builder a family."""
