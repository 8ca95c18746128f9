"""The role ``decapsulator``: takes mirrored packets from tunnels, and gives them to sniffers or keeps them as pcapng.

A document is two levels of JSON: section -> key -> entry. Sections and entries:

``links``     ``tunnel`` / ``sniffers``: ``{"mac": str}``; NICs are found by MAC.
``sessions``  session id: ``{"key": str (58 bits, 15 hexadecimal digits; the low 16 bits are its slot), "source": str (IPv4
              address of the sender's tunnel; "0.0.0.0": the same host), "to": "sniffers" | "store", "store_mib": int (if so),
              "name": str (shown in captures), "ends_at": float (Unix seconds, 0: no end)}``
``foreign``   session id: ``{"source": str, "erspan": int (session ID, 10 bits), "type": 2 | 3, "slot": int}``: a session whose
              source is no tap of Pileus; its entry in ``sessions`` has the same id and tells where its packets go.

The status says, at most 60 KiB in all: ``{"role": "decapsulator", "path": "xdp" | "packets", "mode": "native" | "generic" |
why there is no eBPF, "waiting": [str], "failed": {step: why}, "refused": {reason: packets}, "sessions":
{session id: [key, received, bytes, first, highest, truncated, forwarded, dropped]}}``; numbers only change when packets came,
so that nothing is told while nothing happens. They begin anew with each boot, not with each start of the program.

Captures are read over TCP on 127.0.0.1:CAPTURE_PORT inside the appliance, which only the host reaches (by
``Guest.connect``). The first line that the reader sends is JSON:
``{"session": id, "want": "packets" | "flows", "from": "start" | "now", "follow": bool}``; the answer is pcapng (packets) or
lines of JSON (flows), or one line ``{"error": str, "code": str}``. It ends, with ``follow`` when the session ends; a reader
that takes nothing for a minute is ended before. ``code`` is there when there are too many readers.

Packets: the last block is of statistics (``pcapng.Statistics``) and says how complete the capture is; with ``follow`` there
is one about every 5 s too, when something changed. Flows: a line per flow ``{"protocol", "a", "a_port", "b", "b_port",
"first", "last" (Unix seconds), "packets": [a to b, b to a], "bytes": [...]}``, the latest first, then ``{"flows": int,
"gone": {"flows", "packets", "bytes"}, "received", "lost", "dropped", "over": bool}``; with ``follow`` the flows that
changed, and that line, again about every second.
"""

from __future__ import annotations

CAPTURE_PORT = 4753
TOO_MANY, TOO_MANY_OF_SESSION = "too-many-readers", "too-many-readers-of-session"
"""Codes of refusals."""

KEY_BITS, SLOT_BITS = 58, 16
SESSIONS_MAX = 400
"""Of one decapsulator: their counts must fit into a status, 145 bytes each at most."""
