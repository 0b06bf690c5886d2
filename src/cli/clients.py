"""`python -m src clients`: which other services may ask for access tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer
from pydantic import Field, TypeAdapter

from src.cli.arguments import read_as
from src.cli.context import with_context
from src.cli.output import AsJson, print_json
from src.core.callers import Scope
from src.core.fields import Line
from src.db.base import utc_now
from src.db.models import ServiceClientModel
from src.services import ClientService, Context
from src.services.clients import ClientSecret

app = typer.Typer(help="Other services, and the secrets with which they get access tokens.", no_args_is_help=True)

_ClientName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        parser=read_as(TypeAdapter(Annotated[Line, Field(max_length=100)])),
        help="What the service is called.",
    ),
]
_LONGEST_OVERLAP_HOURS = 30 * 24
_PAGE = 100


@app.command("create")
def create_client(
    name: _ClientName,
    *,
    scopes: Annotated[list[Scope], typer.Option("--scope", help="What it may do; once for each scope.")],
    as_json: AsJson = False,
) -> None:
    """Introduce a service, and print its secret, once."""
    secret = with_context(lambda context: ClientService(context).create(name=name, scopes=scopes))
    _print_secret(secret, as_json=as_json)


@app.command("rotate")
def rotate_client(
    name: _ClientName,
    *,
    overlap_hours: Annotated[
        int,
        typer.Option(
            min=0,
            max=_LONGEST_OVERLAP_HOURS,
            help="How long the secret before it works too; 0 ends it at once, because it has leaked.",
        ),
    ] = 24,
    as_json: AsJson = False,
) -> None:
    """Give a service its next secret, and print it, once."""
    overlap = timedelta(hours=overlap_hours)
    secret = with_context(lambda context: ClientService(context).rotate(name, overlap=overlap))
    _print_secret(secret, as_json=as_json)


@app.command("revoke")
def revoke_client(name: _ClientName) -> None:
    """End the access of a service: its secrets, and the access tokens that it has."""
    with_context(lambda context: ClientService(context).revoke(name))
    typer.echo(f"Revoked {name}: its secrets and access tokens are refused from now on.")


@app.command("list")
def list_clients(*, as_json: AsJson = False) -> None:
    """Show every service, also those that were revoked, the oldest first."""
    lines = [_line(client) for client in with_context(_list_all)]
    if as_json:
        print_json(lines)
        return
    for line in lines:
        times = [
            f"created {_show(line.created_at)}",
            f"last used {_show(line.last_used_at)}" if line.last_used_at else "never used",
            f"previous secret valid until {_show(line.previous_secret_until)}" if line.previous_secret_until else "",
            f"revoked {_show(line.revoked_at)}" if line.revoked_at else "",
        ]
        typer.echo(f"{line.id}  {line.name}  {' '.join(line.scopes)}  {', '.join(filter(None, times))}")


@dataclass(frozen=True, slots=True)
class _Line:
    """What is shown of a client: nothing of its secrets."""

    id: UUID
    name: str
    scopes: Sequence[str]
    created_at: datetime
    last_used_at: datetime | None
    previous_secret_until: datetime | None  # while it still works
    revoked_at: datetime | None


def _line(client: ServiceClientModel) -> _Line:
    previous_works = client.revoked_at is None and client.previous_expires_at and client.previous_expires_at > utc_now()
    return _Line(
        client.id,
        client.name,
        client.scopes,
        client.created_at,
        client.last_used_at,
        client.previous_expires_at if previous_works else None,
        client.revoked_at,
    )


async def _list_all(context: Context) -> list[ServiceClientModel]:
    clients = list[ServiceClientModel]()
    while page := await context.uow.clients.list(limit=_PAGE, after=clients[-1].id if clients else None):
        clients += page
    return clients


def _print_secret(secret: ClientSecret, *, as_json: bool) -> None:
    if as_json:
        print_json(secret)
        return
    typer.echo(f"client_id      {secret.client_id}\nclient_secret  {secret.client_secret}")
    typer.echo("The secret cannot be shown again: hand it to the service now.")


def _show(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
