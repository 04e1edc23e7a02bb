"""Rows of a data set: what is asked for each, and where its captions go."""
