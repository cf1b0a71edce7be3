"""The exception tree: every error a user can cause has a class here and a message that says what to do."""

from __future__ import annotations


class DPServerError(Exception):
    """Base of every error dpserver raises on purpose; anything else is a bug of ours.

    A message names the thing, what was expected, what came, and what the user can do.
    """


class ConfigError(DPServerError):
    """A command line, an endpoint or a training input that cannot be used."""


class OutputError(ConfigError):
    """A file that cannot be written: no permission, no room, no such place."""


class ModelFileError(DPServerError):
    """A model file that is missing, damaged, of another format, or unsafe to read."""


class StructureError(DPServerError):
    """Atoms that cannot be evaluated: non-finite, overlapping, of unknown species, in a singular cell."""


class DataError(DPServerError):
    """A training or test set that is missing, inconsistent or without the labels asked for."""


class ProtocolError(DPServerError):
    """A violation of the i-PI protocol."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow; close its connection."""


class LocalProtocolError(ProtocolError):
    """We tried to send what the protocol does not allow: a bug of ours, and nothing was sent."""


class DeviceError(DPServerError):
    """The device asked for does not exist, is lost, or has no memory left for one structure."""


class AbandonedError(DPServerError):
    """Part of a structure that has no answer because another part has failed, which says why."""
