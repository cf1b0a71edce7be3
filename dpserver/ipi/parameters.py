"""The INIT string: what a peer tells its engine before the first structure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dpserver.errors import RemoteProtocolError
from dpserver.ipi.codec import Limits

BATCH_SIZE = "batch_size"
_COMMA = re.compile(r",(?![^\[\]]*\])")
"""One that is in no square brackets."""


def is_from_ipi(raw: bytes) -> bool:
    """Whether an INIT string is one of i-PI, the only peer known to read extras.

    i-PI, from 2.6 to 3.3 at least, starts it with a blank, which stands alone where the input has no parameters and
    before `key : value` where it has. ASE sends one NUL byte, CP2K a word.
    """
    return raw.startswith(b" ") and (raw.isspace() or b":" in raw)


def parse_parameters(raw: bytes) -> Mapping[str, str]:
    """Read the `<parameters>` of a peer's input, as `key : value` pairs between commas.

    i-PI writes ` template : w.xyz , ` and appends `batch_size:32`; ASE sends one NUL byte, others their own words,
    which are nobody's parameters and are skipped. A comma in square brackets belongs to a value. Of a repeated key the
    last counts.

    Args:
        raw: the string of INIT.

    Raises:
        RemoteProtocolError: it is not text.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"the INIT string is not UTF-8 text: {raw[:40]!r}") from None
    pairs = (item.partition(":") for item in _COMMA.split(text.strip("\0 \t\r\n{}")))
    return {key.strip(): value.strip() for key, colon, value in pairs if colon and key.strip()}


def read_batch_size(parameters: Mapping[str, str], limits: Limits) -> int:
    """Structures in each POSDATA of this peer; 1 unless it announced more.

    Raises:
        RemoteProtocolError: no positive number, or beyond the limit.
    """
    text = parameters.get(BATCH_SIZE, "1")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= limits.batch):
        raise RemoteProtocolError(f"INIT announces {BATCH_SIZE}:{text[:40]}; expected 1 to {limits.batch}")
    return int(text)
