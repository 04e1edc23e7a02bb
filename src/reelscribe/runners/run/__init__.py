"""One run over a data set: its journal, the parts of its output, its files."""
