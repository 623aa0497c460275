"""`featherfed certs`: make, renew and revoke the certificates and tokens of a run."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import click

from featherfed.server.access.authority import Authority
from featherfed.server.access.enrolment import load


def init(folder: Path, hosts: Sequence[str], ca_days: int, days: int) -> None:
    """Make an authority and the server's certificate in `folder`."""
    Authority(folder).create(hosts, ca_days, days)
    click.echo(f"made an authority and the server's certificate in {folder}")
    click.echo(f"next: featherfed certs client {folder} NAME")
    click.echo(f'and in the run file: [security] credentials = "{folder}"')


def enrol(folder: Path, names: Sequence[str], days: int, renew: bool) -> None:
    """Make a folder of credentials for each client."""
    for made in Authority(folder).enrol(names, days, renew):
        click.echo(f"{made}: copy it to the device, give its path as --credentials, and delete it")


def rotate(
    folder: Path, hosts: Sequence[str], days: int, new_ca: bool, ca_days: int, drop_old: bool
) -> None:
    """Renew the server's certificate, and the authority too with `new_ca`.

    With `drop_old`, only end the trust in all authorities but the newest.
    """
    authority = Authority(folder)
    if drop_old:
        lost = authority.drop_old(days)
        click.echo("old authorities are no longer trusted")
        if lost:
            click.echo(
                f"shut out until they get new credentials (certs client --renew): {', '.join(lost)}"
            )
        return
    authority.rotate(hosts, days, ca_days=ca_days if new_ca else None)
    click.echo("the server has a new certificate; one that runs takes it by itself")
    if new_ca:
        click.echo(
            f"now, device by device: featherfed certs client --renew {folder} NAME, and copy the "
            f"folder; when all have theirs: featherfed certs rotate --drop-old {folder}"
        )


def revoke(folder: Path, names: Sequence[str]) -> None:
    """Revoke the credentials of clients."""
    Authority(folder).revoke(names)
    click.echo(f"revoked: {', '.join(names)}; a server that runs refuses their next call")


def show(folder: Path) -> None:
    """Print authorities, the server's certificate and clients, with their dates of expiry."""
    authority = Authority(folder)
    rows = [(name, "authority", _date(expires)) for name, expires in authority.authorities()]
    newest = rows[0][0]
    rows.append(("server", "", _date(authority.server_expires())))
    for name, entry in sorted(load(folder).clients.items()):
        state = "revoked" if entry.revoked else "of an old authority"
        until = datetime.datetime.fromtimestamp(entry.expires, datetime.UTC)
        known = not entry.revoked and entry.authority == newest
        rows.append((name, "" if known else state, _date(until)))
    width = max(len(name) for name, _, _ in rows)
    for name, state, expires in rows:
        click.echo(f"{name:{width}}  {expires}  {state}".rstrip())


def _date(when: datetime.datetime) -> str:
    expired = when < datetime.datetime.now(datetime.UTC)
    return f"{'expired' if expired else 'until'} {when:%Y-%m-%d}"
