"""The daemon: dials, serves, and dials again."""

from dpserver.daemon.daemon import Daemon, ExitCode
from dpserver.daemon.link import Target

__all__ = ["Daemon", "ExitCode", "Target"]
