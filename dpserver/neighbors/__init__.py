"""Neighbour lists with periodic shifts."""

from dpserver.neighbors.lists import Edges, build, builder

__all__ = ["Edges", "build", "builder"]
