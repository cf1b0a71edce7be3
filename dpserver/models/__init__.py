"""Descriptors, fitting nets, the potential made of them, and its file."""
