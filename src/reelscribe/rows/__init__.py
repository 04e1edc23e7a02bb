"""Rows of a data set: the requests about each, and where its captions go."""
