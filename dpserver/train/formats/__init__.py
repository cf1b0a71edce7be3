"""The file formats of labelled structures: one module for each, and `sources`, which says what a path stands for."""
