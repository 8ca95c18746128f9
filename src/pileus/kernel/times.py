"""Times that users write: RFC 3339, always with a zone, because one without would be the server's own."""

from __future__ import annotations

import re

from pileus.kernel.clock import unix
from pileus.kernel.errors import Invalid

END = 253_402_300_800.0
"""The year 10,000 in UTC, of which no calendar here knows; what lies before 1970 is no time of a wish either."""

_ZONE = re.compile(r"(Z|[+-][0-9]{2}:[0-9]{2})$")


def parse_time(text: str, field: str) -> float:
    """Return Unix seconds of what ``field`` says. Raises: Invalid."""
    try:
        if _ZONE.search(text) and 0 <= (at := unix(text)) < END:
            return at
    except (ValueError, OverflowError):
        pass
    raise Invalid(
        f"{field.removeprefix('desired.')} {text!r} is no time such as 2030-01-31T12:00:00Z (RFC 3339)", field=field
    )
