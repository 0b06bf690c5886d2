"""The command line: `python -m src --help`. Each group of commands is a module of its own."""

import asyncio
import os
from dataclasses import asdict
from typing import Annotated

import typer
import uvicorn

from src.cli import backup, clients, keys, outbox, users
from src.cli.doctor import examine
from src.cli.output import AsJson, in_database, print_json
from src.core.settings import get_settings
from src.db.database import AsyncDatabaseManager
from src.db.migrations import head
from src.services.purge import purge

GRACEFUL_SHUTDOWN_SECONDS = 2  # without a limit, one slow client delays the stop until it is a kill

app = typer.Typer(help="The user and auth service.", no_args_is_help=True, pretty_exceptions_enable=False)
app.command("create-admin")(users.create_admin)
app.command("backup")(backup.back_up)
app.add_typer(users.app, name="users")
app.add_typer(clients.app, name="clients")
app.add_typer(keys.app, name="keys")
app.add_typer(outbox.app, name="outbox")


@app.command("serve")
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    workers: Annotated[int | None, typer.Option(help="Processes; the default is WEB_CONCURRENCY, or 1.")] = None,
) -> None:
    """Start the service. After SIGTERM, requests under way get two seconds."""
    if workers:
        os.environ["WEB_CONCURRENCY"] = str(workers)  # by which each worker knows its share of the processors
    uvicorn.run(
        "src.api.app:app",
        host=host,
        port=port,
        workers=workers,
        log_config=get_settings().log_config,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )


@app.command("migrate")
def migrate_database() -> None:
    """Bring the database of DATABASE_URL to the tables that this version needs."""
    in_database(AsyncDatabaseManager.connect, auto_migrate=True)
    typer.echo(f"The database is at {head()}.")


@app.command("openapi")
def print_document() -> None:
    """Print the OpenAPI document of the service with its settings: for linters, and to generate clients from."""
    from src.api.app import app as service  # no other command needs the routes

    print_json(service.openapi())


@app.command("purge")
def purge_now(*, as_json: AsJson = False) -> None:
    """Forget expired tokens, ended sessions, sign-ups that nobody confirmed, sent emails, old events and unused limits.

    The service does so by itself.
    """
    purged = in_database(lambda database: purge(database, get_settings()))
    if as_json:
        print_json(purged)
        return
    names = {"sign_ups": "sign-ups", "mails": "emails"}
    counts = ", ".join(f"{count} {names.get(kind, kind)}" for kind, count in asdict(purged).items())
    typer.echo(f"Deleted {counts}.")


@app.command("doctor")
def diagnose(*, as_json: AsJson = False) -> None:
    """Check settings, database, keys, SMTP server, clocks, the trust in proxies and the room for files, connections and
    data, change nothing, and say what to do.

    The exit code is 1 if something is a problem, 0 otherwise, so that scripts can ask.
    """
    findings = asyncio.run(examine())
    if as_json:
        print_json([{"check": it.check, "status": it.status, "text": it.text, "advice": it.advice} for it in findings])
    for it in () if as_json else findings:
        typer.echo(f"{it.status:8} {it.check:9} {it.text} {it.advice}".rstrip())
    if any(it.status == "problem" for it in findings):
        raise typer.Exit(1)
