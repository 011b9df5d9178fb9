"""Measurements for docs/results.md: sides that are compared take turns in one process tree, round by round."""
