"""Rendered scenes whose captions can be checked for truth: values and sentences (`scenes`), pixels and files (`render`)."""
