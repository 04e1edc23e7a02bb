"""Rendered scenes whose captions can be checked for truth: sentences (`scenes`), pixels and files (`render`)."""
