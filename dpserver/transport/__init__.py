"""How bytes reach a peer: endpoints, dialling, connections, shared memory, MPI. The only package with sockets."""

from dpserver.transport.connection import Connection, Watchable
from dpserver.transport.dialer import Attempt, Backoff
from dpserver.transport.endpoint import Endpoint, InetEndpoint, ShmEndpoint, UnixEndpoint, parse_endpoint
from dpserver.transport.shm import SharedArrays

__all__ = [
    "Attempt",
    "Backoff",
    "Connection",
    "Endpoint",
    "InetEndpoint",
    "SharedArrays",
    "ShmEndpoint",
    "UnixEndpoint",
    "Watchable",
    "parse_endpoint",
]
