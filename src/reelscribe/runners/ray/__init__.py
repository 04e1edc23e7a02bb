"""A run whose answers come from a Ray cluster."""
