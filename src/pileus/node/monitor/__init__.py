"""The engine of a monitor: what is known of appliances, and what policies make of it. The same code runs in a server and in
an appliance VM. Pure: no clock, no sockets, no threads; standard library only. Time is Unix seconds, given by the caller.

Document, read strictly (``model``): ``{"settings": {"poll_s", "jitter", "timeout_s", "misses", "seed", "hung_s"},
"appliances": {vm: {"name", "account", "labels", "epoch", "resume"}}, "policies": {id: {"name", "when", "match", "do", "mode",
"cooldown_s", "labels"}}}``. A clause of ``when``: ``{"field", "operator", "value", "for_s"}``; a policy is for the appliances
that have all its labels. ``resume`` is the row as it was last written, by whichever engine.

Report, untrusted (``contents``): ``{"vm", "origin": push|poll|host|fault, "at", "vitals"}``.

Row (``table``): ``{"vm", "epoch", "at", "origin", "execution": {"state", "node", "boots", "boot_id", "misses", "since",
"heard_at"}, "configuration": {"hash", "version"}, "io": {"disk_bytes", "net_bytes", "idle_s"},
"applications", "other": {the rest of the status, "ignored": what was left out of it, and reports that were none},
"standing": {policy/subject: {"since": None when it does not stand, "incident", "acted", "acted_at", "gap_s", "counters":
[boots, exits], "clauses": {clause: true since}}}}``; moments are 0 for never. The entry ``/`` of what stands has the
highest number of an incident that was forgotten.

Action (``standing``): ``{"key": policy/vm/subject/incident, "vm", "epoch", "policy", "name", "subject", "incident", "cause":
{"text", "clauses": [{"field", "operator", "value", "seen"}]}, "acts", "mode", "counters", "at"}``. The row that comes
with it says that it was acted on: who stores both does so at once, or mends a row that stayed behind with
``table.with_actions``; then no engine acts on the same incident again, nor gives its number to another.
"""

from __future__ import annotations
