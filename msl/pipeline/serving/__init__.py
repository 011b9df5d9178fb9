"""Inference as a service: one hop of a chain that many clients use at once."""
