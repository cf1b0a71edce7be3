"""Neighbour lists with periodic shifts."""

from dpserver.neighbors.lists import Edges, build

__all__ = ["Edges", "build"]
