"""Measurements against peers, each side by side in one run; outside the package."""
