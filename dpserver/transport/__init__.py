"""Sockets, and nothing but sockets: endpoints, dialling, connections."""

from dpserver.transport.connection import Connection, Watchable
from dpserver.transport.dialer import Attempt, Backoff
from dpserver.transport.endpoint import Endpoint, InetEndpoint, UnixEndpoint, parse_endpoint

__all__ = [
    "Attempt",
    "Backoff",
    "Connection",
    "Endpoint",
    "InetEndpoint",
    "UnixEndpoint",
    "Watchable",
    "parse_endpoint",
]
