"""How much memory is in use."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def memory_in_use(device: torch.device) -> int:
    """Count the bytes that this process holds: on a GPU what torch has reserved there, else its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the most there has been
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return n_pages * resource.getpagesize()
