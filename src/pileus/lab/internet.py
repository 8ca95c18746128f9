"""The test host ``internet``: answers every HTTP request on port 80 with the address that it came from."""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pileus.lab.topology import INTERNET_ADDRESS

NOBODY = 65_534


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server_version, sys_version = "pileus-lab", ""
    timeout = 10.0

    def do_GET(self) -> None:
        """Say who asks."""
        text = f"you are {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> int:
    """Serve until killed."""
    server = ThreadingHTTPServer((INTERNET_ADDRESS, 80), Answer)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
