"""How long a test waits before it has failed, not been slow: machines are slow, and have other work."""

PATIENCE = 60.0
"""s, for an answer, a thread, or a program that has little to do."""

JOB_PATIENCE = 600.0
"""s, for programs that load their libraries and compute."""
