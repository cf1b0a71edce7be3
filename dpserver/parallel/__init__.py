"""Structures over several processes: cut into parts whose answers add up to that of the whole."""
