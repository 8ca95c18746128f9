"""What the example managers know of the cloud: its HTTP API, one key, and the streams that tell of changes.

The server and its CA are those of the current context of ``pileus`` (``pileus login``, ``pileus up``), and so is the
key; ``$PILEUS_KEY`` goes before it.
"""

import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 45.0
"""Three heartbeats of the server."""

PAUSE_S = 1.0
LOOK_S = 30.0
"""Everything is looked at anew so often, also when nobody tells of a change."""

SETTLED = ("applied", "refused", "expired", "withdrawn", "unknown")


class Refused(Exception):
    """The cloud said no; ``status`` is that of HTTP."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Cloud:
    """A cloud, as a manager sees it: its own nodes, in the accounts that consented, or in its own account."""

    def __init__(self, server, ca, key):
        self._server, self._key = server.rstrip("/"), key
        tls = ssl.create_default_context(cadata=ca)
        self._open = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls)).open
        me = self.call("GET", "/v1/whoami")
        self.manager, self.account = me["manager"], me["account"]

    def call(self, method, path, body=None, **query):
        """Return the answer as JSON. Raises: Refused, OSError."""
        with self._send(method, path, body, query, TIMEOUT_S) as answer:
            return json.loads(answer.read() or b"{}")

    def list(self, kind, **query):
        """Return all of a kind that the manager may see."""
        found, after = [], ""
        while after is not None:
            page = self.call("GET", f"/v1/{kind}", limit="500", after=after, **query)
            found += page["items"]
            after = page["next"]
        return found

    def accounts(self):
        """Return the accounts that nodes may be made in: the manager's own, or those that consented to it."""
        if self.account:
            return [self.account]
        consents = self.list("fleet.consent")
        return sorted(one["account"] for one in consents if "create" in one["desired"]["allows"])

    def nodes(self, account=""):
        """Return the manager's nodes, by account and name."""
        found = [node for node in self.list("fleet.node") if account in ("", node["account"])]
        return sorted(found, key=lambda node: (node["account"], node["name"]))

    def bring(self, account, name, document, network):
        """Let the account have a node of this name with this document."""
        node = next((node for node in self.nodes(account) if node["name"] == name), None)
        if node is None:
            wish = {"manager": self.manager, "document": document, "nics": [{"network": network}]}
            self.call("POST", "/v1/fleet.node", {"name": name, "account": account, "desired": wish})
        elif self.call("GET", f"/v1/fleet.node/{node['id']}/document") != document:
            # Put, not patch: a patch merges, and what is not said any more would stay.
            wish = {"labels": node["labels"], "desired": node["desired"] | {"document": document}}
            self.call("PUT", f"/v1/fleet.node/{node['id']}", wish | {"revision": node["revision"]})

    def ask(self, node, wanted, deadline_s=300.0):
        """Return how a request to the node ended, and what it answered."""
        deadline = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + deadline_s))
        wish = {"node": node["id"], "payload": json.dumps(wanted), "deadline": deadline}
        asked = self.call("POST", "/v1/fleet.request", {"account": node["account"], "desired": wish})
        while (asked.get("observed") or {}).get("state") not in SETTLED:
            time.sleep(PAUSE_S / 5)
            asked = self.call("GET", f"/v1/fleet.request/{asked['id']}")
        return asked["observed"]["state"], asked["observed"]["answer"]

    def tend(self, look, *kinds):
        """Call ``look`` now, whenever something of these kinds changes, and every now and then, for ever."""
        changed = threading.Event()
        for kind in kinds:
            threading.Thread(target=self._follow, args=(kind, changed), daemon=True).start()
        while True:
            changed.clear()
            try:
                look()
            except (OSError, Refused) as failed:
                print(f"not done yet: {failed}", flush=True)
                time.sleep(PAUSE_S)
                continue
            changed.wait(LOOK_S)

    def _follow(self, kind, changed):
        """Say when something changes; a stream that ends is opened again."""
        while True:
            try:
                with self._send("GET", f"/v1/{kind}", None, {"watch": "1"}, STREAM_TIMEOUT_S) as stream:
                    for line in stream:
                        if line.startswith(b"event:"):
                            changed.set()
            except (OSError, Refused):
                time.sleep(PAUSE_S)
            changed.set()

    def _send(self, method, path, body, query, timeout_s):
        """Raises: Refused, OSError."""
        url = f"{self._server}{path}?{urllib.parse.urlencode({name: it for name, it in query.items() if it})}"
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = os.urandom(16).hex()
        sent = None if body is None else json.dumps(body).encode()
        try:
            asked = urllib.request.Request(url, sent, headers, method=method)  # noqa: S310 (a context's server is https)
            return self._open(asked, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()
            raise Refused(error.code, _detail(said) or f"the cloud answered {error.code}") from None


def _detail(said):
    try:
        return json.loads(said).get("detail", "")
    except ValueError:
        return ""


def connect():
    """Return the cloud of the current context."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    config = json.loads(Path(os.environ.get("PILEUS_CONFIG") or folder / "pileus/config.json").read_text())
    context = config["contexts"][config["current"]]
    return Cloud(context["server"], context["ca"], os.environ.get("PILEUS_KEY", "").strip() or context["key"])
