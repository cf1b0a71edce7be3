"""Numerical kernels: they take arrays and know no model."""
