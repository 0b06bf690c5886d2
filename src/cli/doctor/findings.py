"""What a check finds, and what all checks share."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.files import how_to_close, who_else_may_open
from src.core.settings import Settings
from src.db.database import AsyncDatabaseManager

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found, and what to do about it."""

    check: str
    status: Status
    text: str
    advice: str = ""
    blocks: str = ""  # why the checks that need this one cannot run


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    run: Callable[[Settings], Awaitable[Sequence[Finding]]]
    needs: Sequence[str] = ()  # the checks before it that must not have been blocked


@asynccontextmanager
async def open_session(settings: Settings) -> AsyncGenerator[AsyncSession, None]:
    database = AsyncDatabaseManager.from_settings(settings)
    try:
        async with database.session() as session:
            yield session
    finally:
        await database.disconnect()


def try_to_write(path: Path) -> None:
    """Raise `OSError` where a file cannot be made, or changed if it exists. Permissions alone do not tell: a disk may
    be mounted read-only. Nothing is left behind."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with TemporaryFile(dir=folder):
        pass
    if path.exists():
        path.open("r+b").close()


def check_modes(check: str, paths: Iterable[Path]) -> Iterator[Finding]:
    for path in paths:
        if who := who_else_may_open(path):
            status: Status = "problem" if who == "Everyone" else "warning"
            yield Finding(check, status, f"{who} on this machine may open {path}.", f"{how_to_close(path)}.")
