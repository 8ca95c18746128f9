"""Admission of a signature: rules that may be some, or none for the test file of EICAR."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.signature.types import RULES_CHARACTERS_MAX, SignatureAssigned, SignatureDesired


class SignatureAdmission(Admission):
    """What can be refused at once is refused here; the rules are compiled where they are used, in a process that may end."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the signature. Raises: Invalid."""
        desired: SignatureDesired = change.new.desired
        if len(desired.rules.encode()) > RULES_CHARACTERS_MAX:
            raise Invalid(f"rules take at most {RULES_CHARACTERS_MAX} bytes", field="desired.rules")
        if desired.rules and "rule" not in desired.rules:
            raise Invalid("these are no YARA rules: there is no rule in them", field="desired.rules")
        if desired.engine == "clamav" and desired.rules:
            raise Invalid("ClamAV brings its own signatures; leave the rules out", field="desired.rules")
        if desired.engine == "clamav" and desired.look in ("inside", "both"):
            raise Invalid("ClamAV looks at disks from outside only; leave look out", field="desired.look")
        assigned = change.new.assigned or SignatureAssigned()
        return replace(change.new, assigned=assigned)
