"""`python -m src backup`: a copy of what cannot be made again, the database and the keys. docs/run/backup.md tells how
it is restored."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import URL

from src.cli.output import AsJson, fail, print_json
from src.core.settings import get_settings
from src.db.base import utc_now
from src.db.database import AsyncDatabaseManager
from src.db.sqlite import sqlite_path

PAGES_AT_ONCE = 1_000  # between which others get the processor and the disk


def back_up(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where backups are kept; it is made if need be.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Copy the SQLite database and the keys into a new folder in DIR, while the service runs. Of PostgreSQL, copy the
    keys and print the command that dumps the database.

    The folder holds all that is needed to log in as anybody: keep it as you keep the keys.
    """
    settings = get_settings()
    database = AsyncDatabaseManager.from_settings(settings)
    if database.is_in_memory or (database.is_sqlite and not database.files):
        fail("There is no database to back up: see DATABASE_URL.")
    done = folder / f"{utc_now():%Y%m%dT%H%M%SZ}"
    unfinished = done.with_suffix(".unfinished")
    try:
        unfinished.mkdir(parents=True, mode=0o700)
        # Before and after: what was encrypted meanwhile may need a new key, and what was before, one that is retired.
        _copy_keys(settings.jwt_keys_dir, unfinished / "keys")
        if database.is_sqlite:
            _copy_sqlite(sqlite_path(database.url.database or ""), unfinished / "users.db")
        _copy_keys(settings.jwt_keys_dir, unfinished / "keys")
        unfinished.rename(done)
    except (OSError, sqlite3.Error) as error:
        fail(f"The backup has failed, and {unfinished} is of no use: {error}")
    command = None if database.is_sqlite else _dump_command(database, done / "users.dump")
    if as_json:
        print_json({"folder": str(done), "dump_command": command})
        return
    typer.echo(f"Backed up to {done}.")
    if command:
        typer.echo(f"Now dump the database, with the password in PGPASSWORD or ~/.pgpass:\n{command}")


def _copy_sqlite(source: Path, target: Path) -> None:
    """As it is at one moment. Whoever reads or writes meanwhile does not wait.

    Raises `sqlite3.Error` where the copy is not whole.
    """
    target.touch(mode=0o600)
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        reading.execute("BEGIN")  # or each write of others would make the copy begin anew
        reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
        reading.backup(writing, pages=PAGES_AT_ONCE)
        [result] = writing.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise sqlite3.DatabaseError(result)
    _to_disk(target)


def _copy_keys(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not (target / file.name).exists():
            copied = target / file.name
            copied.touch(mode=0o600)
            shutil.copyfile(file, copied)
            _to_disk(copied)


def _to_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _dump_command(database: AsyncDatabaseManager, target: Path) -> str:
    used = database.url
    options = {("sslmode" if name == "ssl" else name): value for name, value in used.query.items()}  # as libpq calls it
    options.pop("password", None)
    plain = URL.create("postgresql", used.username, None, used.host, used.port, used.database, options)
    return f'pg_dump --format=custom --file="{target}" "{plain.render_as_string(hide_password=False)}"'
