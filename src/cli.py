"""The command line: `python -m src --help`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, NoReturn, TypeVar
from uuid import UUID

import typer
import uvicorn

from src.core.keys import Key, NoKeysError, load_keys, needed_until, rotate, signer
from src.core.settings import Settings, get_settings
from src.db.database import AsyncDatabaseManager
from src.db.migrations import head, migrate
from src.services.outbox import list_unsent, retry_dead_letters
from src.services.purge import purge

Result = TypeVar("Result")

app = typer.Typer(help="The user and auth service.", no_args_is_help=True, pretty_exceptions_enable=False)
keys = typer.Typer(help="The keys that sign tokens.", no_args_is_help=True)
app.add_typer(keys, name="keys")
outbox = typer.Typer(help="The mails that wait to be sent.", no_args_is_help=True)
app.add_typer(outbox, name="outbox")


@app.command("serve")
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    workers: Annotated[int | None, typer.Option(help="Processes; the default is WEB_CONCURRENCY, or 1.")] = None,
) -> None:
    """Start the service."""
    uvicorn.run("src.api.app:app", host=host, port=port, workers=workers)


@app.command("migrate")
def migrate_database() -> None:
    """Bring the database of DATABASE_URL to the tables that this version needs."""
    asyncio.run(_in_database(migrate))
    typer.echo(f"The database is at {head()}.")


@app.command("purge")
def purge_now() -> None:
    """Forget expired tokens, ended sessions, and sign-ups that nobody confirmed. The service does so by itself."""
    purged = asyncio.run(_in_database(lambda database: purge(database, get_settings())))
    counts = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in asdict(purged).items())
    typer.echo(f"Deleted {counts}.")


@outbox.command("list")
def list_mails(limit: Annotated[int, typer.Option(help="At most so many.")] = 100) -> None:
    """Show the mails that wait, and the dead letters, the oldest first."""
    for mail in asyncio.run(_in_database(lambda database: list_unsent(database, limit=limit))):
        typer.echo(
            f"{mail.id}  {mail.status:6}  {mail.kind:18} attempts {mail.attempts:2}  "
            f"due {mail.due_at:%Y-%m-%d %H:%M:%S}  {mail.to_email}  {mail.last_error or ''}"
        )


@outbox.command("retry")
def retry_mails(
    mail_id: Annotated[UUID | None, typer.Argument(help="The id that `outbox list` shows; all, if left out.")] = None,
) -> None:
    """Queue a dead letter again, or all of them."""
    count = asyncio.run(_in_database(lambda database: retry_dead_letters(database, mail_id)))
    if mail_id and not count:
        _fail(f"There is no dead letter {mail_id}: see `python -m src outbox list`.")
    typer.echo(f"Queued {count} again.")


@keys.command("list")
def list_keys() -> None:
    """Show every key: what it signs, whether it does so now, and from when."""
    settings = get_settings()
    for group in _key_groups(settings):
        for key in group.keys:
            typer.echo(f"{group.kind:8} {key.id:44} {key.algorithm:6} {_state(key, group):35} {key.path}")


@keys.command("rotate")
def rotate_keys() -> None:
    """Make a new access key and a new refresh secret.

    They are published at once and sign a few minutes later. The old ones go on verifying until they are retired.
    """
    settings = get_settings()
    try:
        rotate(settings.jwt_keys_dir, settings.jwt_algorithm)
    except OSError as error:
        _fail(f"The new keys cannot be written: {error}")
    list_keys()


# An id may begin with a dash: it is no option then.
@keys.command("retire", context_settings={"ignore_unknown_options": True})
def retire_key(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Retire it even if that ends live tokens, because it has leaked.")
    ] = False,
) -> None:
    """Delete a key once no live token needs it."""
    settings = get_settings()
    for group in _key_groups(settings):
        for key in group.keys:
            if key.id == key_id:
                if not force:
                    _refuse_while_needed(key, group)
                key.path.unlink()
                typer.echo(f"Retired {key.id}: running workers forget it within seconds.")
                return
    _fail(f"There is no key {key_id} in {settings.jwt_keys_dir}: see `python -m src keys list`.")


@dataclass(frozen=True, slots=True)
class _KeyGroup:
    kind: str
    keys: Sequence[Key]
    signing: Sequence[Key]  # those of the algorithm that signs
    token_lifetime: timedelta


def _key_groups(settings: Settings) -> tuple[_KeyGroup, _KeyGroup]:
    try:
        access, refresh = load_keys(settings.jwt_keys_dir)
    except (NoKeysError, OSError) as error:
        _fail(str(error))
    signing = [key for key in access if key.algorithm == settings.jwt_algorithm]
    return (
        _KeyGroup("access", access, signing, timedelta(seconds=settings.auth_access_ttl_seconds)),
        # A session that is used gets a new token, so an old secret is needed no longer than a session may lie idle.
        _KeyGroup("refresh", refresh, refresh, timedelta(seconds=settings.auth_session_idle_seconds)),
    )


def _state(key: Key, group: _KeyGroup) -> str:
    if key not in group.signing:
        return "verifies"
    if key == signer(group.signing):
        return "signs now"
    if key.signs_from > datetime.now(UTC):
        return f"signs from {key.signs_from:%Y-%m-%d %H:%M:%S} UTC"
    return "verifies"


def _refuse_while_needed(key: Key, group: _KeyGroup) -> None:
    until = needed_until(key, group.signing, group.token_lifetime)
    if until is None:
        _fail("It signs, or may have signed until a moment ago: rotate first. --force if it has leaked.")
    if until > datetime.now(UTC):
        _fail(f"Tokens that it signed live until {until:%Y-%m-%d %H:%M:%S} UTC: wait. --force if it has leaked.")


def _fail(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(1)


async def _in_database(work: Callable[[AsyncDatabaseManager], Awaitable[Result]]) -> Result:
    database = AsyncDatabaseManager(get_settings().database_url)
    try:
        return await work(database)
    finally:
        await database.disconnect()
