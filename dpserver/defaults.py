"""Numbers that hold wherever nothing else is asked for; the command line shows them and must not load torch for it."""

from __future__ import annotations

from typing import Final

TABLE_ERROR: Final = 1e-10
"""Error of forces that tables may cause, relative to forces of typical size."""
