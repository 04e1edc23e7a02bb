"""Ways to run the operator over a data set: one module an engine."""
