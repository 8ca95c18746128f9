"""Admission of a history: one for each monitor, and a database that the caller may lead the cloud to, or none."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from msgspec.structs import replace as changed

from pileus.kernel.addresses import is_public
from pileus.kernel.admission import Admission, Change
from pileus.kernel.authority import check_authority
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Transaction
from pileus.monitor.history.types import HistoryAssigned, HistoryDesired, history_space


class HistoryAdmission(Admission):
    """What can be refused is refused here; what a name leads to is checked again at each connection."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the history. Raises: Invalid, Denied, Conflict."""
        new = change.new
        desired: HistoryDesired = new.desired
        is_operator = change.principal.operator
        old: HistoryDesired | None = change.old.desired if change.old is not None else None
        is_elsewhere = old is None or (old.host, old.port) != (desired.host, desired.port)
        if desired.tls == "off" and not is_operator and (old is None or old.tls != "off" or is_elsewhere):
            raise Denied("only the cloud's operator may have a history written unencrypted; leave tls at verify")
        _check_form(desired)
        if old is None or old.ca != desired.ca:
            check_authority(desired.ca, "desired.ca")
        if desired.form == "postgresql":
            _check_host(desired.host, is_operator)
        if change.old is None:
            try:
                await tx.claim(history_space(), change.links["monitor"], new.id)
            except AlreadyClaimed as error:
                other = await tx.get(error.holder)
                raise Conflict(
                    f"the monitor has {other} already; change or delete that", code="already-exists"
                ) from None
            return replace(new, assigned=HistoryAssigned(reach="any" if is_operator else "public"))
        reach = ("any" if is_operator else "public") if is_elsewhere else new.assigned.reach
        return replace(new, assigned=changed(new.assigned, reach=reach))


def _check_form(desired: HistoryDesired) -> None:
    """Raises: Invalid for a database without what it takes to write there, or a file with it."""
    words = {word: getattr(desired, word) for word in ("host", "database", "user")}
    if desired.form == "postgresql":
        missing = [word for word, said in words.items() if not said]
        if missing:
            raise Invalid(
                f"a PostgreSQL needs {', '.join(missing)}; a file of yours needs none of it: form=sqlite",
                field=f"desired.{missing[0]}",
            )
        return
    given = [word for word, said in {**words, "password": desired.password, "ca": desired.ca}.items() if said]
    if given:
        raise Invalid(
            f"with form=sqlite the cloud connects to nothing, so leave out {', '.join(given)}; `pileus history pull` "
            "fetches what waits",
            field=f"desired.{given[0]}",
        )


def _check_host(host: str, is_operator: bool) -> None:
    try:
        address = ip_address(host)
    except ValueError:
        if not all(
            part and len(part) <= 63 and part.replace("-", "").isalnum() for part in host.rstrip(".").split(".")
        ):
            raise Invalid(f"{host!r} is no name of a server", field="desired.host") from None
        return
    if not is_operator and not is_public(address):
        raise Invalid(
            f"{host} is of a private network; a database there is for the cloud's operator to name",
            field="desired.host",
        )
