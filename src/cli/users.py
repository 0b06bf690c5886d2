"""`python -m src users` and `create-admin`: accounts, as whoever runs the service looks after them."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer
from pydantic import SecretStr, TypeAdapter, ValidationError

from src.cli.arguments import read_as
from src.cli.context import with_context
from src.cli.output import AsJson, fail, in_database, print_json
from src.core.addresses import normalize_email
from src.core.callers import Operator
from src.core.encryption import Encryption
from src.core.exceptions import UserEmailTakenError, UserNotFoundError
from src.core.fields import Email, Password, SearchText, reason_of
from src.core.keys import NoKeysError
from src.core.settings import get_settings
from src.core.tokens import TokenSigner
from src.core.users import UserRecord
from src.db.repositories import Order, UserFilter
from src.services import AccountService, Context, UserService
from src.services.imports import ReadsLines, import_people
from src.services.users import UserChanges

app = typer.Typer(help="Accounts, and the sign-ups that wait to become one.", no_args_is_help=True)

_PAGE = 1000
_SHOWN = ("id", "email", "name", "is_active", "is_admin", "activated_at", "last_login_at", "created_at", "updated_at")
_CLEAR_LINE = "\r\x1b[K"


def _read_user(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        pass
    try:
        return normalize_email(text)
    except ValueError:
        raise typer.BadParameter("is neither the id of a user nor an e-mail address") from None


_User = Annotated[str, typer.Argument(metavar="USER", parser=_read_user, help="The id, or the address of the account.")]


def create_admin(
    email: Annotated[
        str, typer.Argument(metavar="EMAIL", parser=read_as(TypeAdapter(Email)), help="The address of the account.")
    ],
    *,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input, instead of asking for it.")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make the account that the address has an administrator.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an active administrator. The password is asked for, or read from standard input."""
    if promote and password_stdin:
        raise typer.BadParameter("an account that is promoted keeps its password", param_hint="--password-stdin")
    if promote:
        user_id = with_context(lambda context: _update(context, email, {"is_active": True, "is_admin": True})).id
    else:
        password = _read_password() if password_stdin else _ask_password()
        user_id = with_context(lambda context: _create_admin(context, email, password))
    if as_json:
        print_json({"user_id": user_id})
        return
    typer.echo(f"{email} is an administrator: {user_id}")


@app.command("list")
def list_users(
    *,
    email: Annotated[
        str | None, typer.Option(metavar="EMAIL", parser=read_as(TypeAdapter(Email)), help="Whoever has this address.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="TEXT", parser=read_as(TypeAdapter(SearchText)), help="A part of the name, in any case."),
    ] = None,
    is_active: Annotated[
        bool | None, typer.Option("--active/--inactive", help="Only those who can log in, or who are disabled.")
    ] = None,
    is_admin: Annotated[bool, typer.Option("--admin", help="Only administrators.")] = False,
    pending: Annotated[
        bool, typer.Option("--pending", help="Sign-ups and invitations that wait, instead of accounts.")
    ] = False,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first, instead of the oldest.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show users, in the order of their age."""
    filters = UserFilter(email=email, name=name, is_active=is_active, is_admin=is_admin or None, pending=pending)
    order: Order = "newest" if newest else "oldest"
    records = with_context(lambda context: _list(context, filters, order, limit))
    if as_json:
        print_json([_fields(record) for record in records])
        return
    for record in records:
        role = "admin" if record.is_admin else ""
        typer.echo(
            f"{record.id}  {_state(record):8}  {role:5}  created {record.created_at:%Y-%m-%d}  "
            f"{record.email}  {record.name or ''}"
        )


@app.command("show")
def show_user(who: _User, *, as_json: AsJson = False) -> None:
    """Show all that is known of a user."""
    record, has_second_factor = with_context(lambda context: _get_all(context, who))
    fields = _fields(record) | {"second_factor": has_second_factor}
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        typer.echo(f"{name:13}  {_show(value)}")


@app.command("disable")
def disable_user(who: _User) -> None:
    """Keep a user from logging in. Every session and link of theirs ends at once."""
    record = with_context(lambda context: _update(context, who, {"is_active": False}))
    typer.echo(f"{record.email} is disabled, and logged out everywhere.")


@app.command("enable")
def enable_user(who: _User) -> None:
    """Let a user who was disabled log in again."""
    record = with_context(lambda context: _update(context, who, {"is_active": True}))
    typer.echo(f"{record.email} can log in.")


@app.command("delete")
def delete_user(
    who: _User, *, is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask whether this is meant.")] = False
) -> None:
    """Remove a user and all that belongs to them. The address is free again."""
    record = with_context(lambda context: _get(context, who))
    if not is_sure:
        typer.confirm(f"Delete {record.email} ({record.id}) for good?", abort=True, err=True)
    with_context(lambda context: UserService(context).delete(Operator(), record.id))
    typer.echo(f"{record.email} is deleted.")


@app.command("reset-second-factor")
def reset_second_factor(who: _User) -> None:
    """Remove the second factor of somebody who has lost it. They are logged out everywhere, and get a notice."""
    record = with_context(lambda context: _get(context, who))
    with_context(lambda context: UserService(context).reset_second_factor(Operator(), record.id))
    typer.echo(f"{record.email} logs in with the password alone, until they set up a second factor again.")


@app.command("import")
def import_users(
    file: Annotated[typer.FileBinaryRead, typer.Argument(metavar="FILE.jsonl", help="The file; - is standard input.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take people over from another system, with the hashes of their passwords.

    Each line is {"email", "hashed_password"}, and "name", "is_active", "is_admin", "totp_secret" where they are known.
    Addresses that have an account are left as they are, so repeating an import changes nothing, and ends one that was
    interrupted.
    """
    encryption = Encryption(TokenSigner.from_settings(get_settings()).keys)
    is_shown = sys.stderr.isatty() and file.seekable()

    def report(line: int, reason: str) -> None:
        typer.echo(f"{_CLEAR_LINE if is_shown else ''}line {line}: {reason}", err=True)

    try:
        with _progress(file) if is_shown else nullcontext(file) as lines:
            counts = in_database(
                lambda database: import_people(
                    database,
                    lines,
                    encryption=encryption,
                    report=report,
                    is_production=get_settings().is_production,
                    dry_run=dry_run,
                )
            )
    except NoKeysError as error:
        fail(f"Second factors cannot be encrypted. {error} Then repeat the import: it goes on where it stopped.")
    except KeyboardInterrupt:
        typer.echo("Interrupted. Repeat the import: it goes on where it stopped.", err=True)
        raise
    if as_json:
        print_json(counts)
    else:
        imported = "Would import" if dry_run else "Imported"
        typer.echo(f"{imported} {counts.imported}, unchanged {counts.unchanged}, refused {counts.refused}.")
    if counts.refused:
        raise typer.Exit(1)


def _ask_password() -> str:
    # The prompt goes where errors go: a program reads the output.
    return _check(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


def _read_password() -> str:
    line: bytes = typer.get_binary_stream("stdin").readline()
    return _check(line.decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r"))


def _check(password: str) -> str:
    try:
        return TypeAdapter[SecretStr](Password).validate_python(password).get_secret_value()
    except ValidationError as error:
        fail(f"The password {reason_of(error.errors()[0])}.")


async def _create_admin(context: Context, email: str, password: str) -> UUID:
    try:
        return await AccountService(context).create_admin(email=email, password=password)
    except UserEmailTakenError:
        fail(f"{email} has an account. To make that an administrator, repeat the command with --promote.")


async def _update(context: Context, who: str, changes: UserChanges) -> UserRecord:
    user = await _get(context, who)
    return await UserService(context).update(Operator(), user.id, changes)


async def _get(context: Context, who: str) -> UserRecord:
    users = context.uow.users
    if "@" not in who:
        return await users.get_record(UUID(who))
    owner = await users.find_owner(who)
    if owner is None:
        raise UserNotFoundError("No account has this address.")
    return await users.get_record(owner.id)


async def _get_all(context: Context, who: str) -> tuple[UserRecord, bool]:
    record = await _get(context, who)
    return record, await context.uow.second_factors.is_set(record.id)


async def _list(context: Context, filters: UserFilter, order: Order, limit: int) -> Sequence[UserRecord]:
    users, records = context.uow.users, list[UserRecord]()
    while room := min(_PAGE, limit - len(records)):
        after = records[-1].id if records else None
        page = await users.list_records(filters, order=order, limit=room, after=after)
        records += page
        if len(page) < room:
            break
    return records


def _fields(record: UserRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in _SHOWN}


def _state(record: UserRecord) -> str:
    if record.activated_at is None:
        return "pending"
    return "active" if record.is_active else "disabled"


def _show(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return str(value)


@contextmanager
def _progress(file: typer.FileBinaryRead) -> Iterator[ReadsLines]:
    """The file, which shows on the terminal how much of it has been read."""
    size = os.fstat(file.fileno()).st_size
    with typer.progressbar(length=size, file=sys.stderr, update_min_steps=size // 1000) as bar:
        yield _Watched(file, bar.update)


@dataclass(frozen=True, slots=True)
class _Watched:
    file: ReadsLines
    has_read: Callable[[int], None]

    def readline(self, size: int, /) -> bytes:
        line = self.file.readline(size)
        self.has_read(len(line))
        return line
