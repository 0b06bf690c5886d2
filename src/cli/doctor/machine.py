"""What the machine and the database have room for."""

import os
import resource
import shutil
from collections.abc import Sequence

from sqlalchemy import text

from src.cli.doctor.findings import Finding, open_session
from src.core.settings import Settings
from src.db.database import AsyncDatabaseManager
from src.db.sqlite import THREADS, sqlite_path

DESCRIPTORS_OF_A_PROCESS = 50  # libraries, logs, the event loop, keys
DESCRIPTORS_OF_A_FILE = 3  # that SQLite opens for each connection: the file, its journal, and shared memory
LEAST_FREE_BYTES = 1024**3
LEAST_FREE_SHARE = 0.05
RESERVED_CONNECTIONS = 5  # for migrations, backups, and who looks into the database


async def check_descriptors(settings: Settings) -> Sequence[Finding]:
    """A request keeps a socket, a connection to the database as well."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    of_database = settings.database_pool_size
    if AsyncDatabaseManager.from_settings(settings).is_sqlite:
        of_database = (settings.database_pool_size + THREADS) * DESCRIPTORS_OF_A_FILE
    needed = DESCRIPTORS_OF_A_PROCESS + settings.server_max_requests + of_database
    text_ = f"A process may open {limit} files and sockets, and may need {needed}."
    if limit >= needed:
        return [Finding("limits", "ok", text_)]
    advice = "Raise it (`ulimit -n`, LimitNOFILE= of systemd), or lower SERVER_MAX_REQUESTS or DATABASE_POOL_SIZE."
    return [Finding("limits", "warning", text_, advice)]


async def check_connections(settings: Settings) -> Sequence[Finding]:
    """Of PostgreSQL, which refuses whoever comes when all are taken."""
    if AsyncDatabaseManager.from_settings(settings).is_sqlite:
        return []
    async with open_session(settings) as session:
        allowed = int(await session.scalar(text("SHOW max_connections")))
        reserved = int(await session.scalar(text("SHOW superuser_reserved_connections")))
    free = allowed - reserved - RESERVED_CONNECTIONS
    workers = _workers()
    replicas = free // (settings.database_pool_size * workers)
    each = f"{settings.database_pool_size} connections for each of {workers} workers"
    text_ = f"PostgreSQL has {allowed} connections: room for {replicas} replicas with {each}."
    if replicas:
        return [Finding("limits", "ok", text_)]
    advice = "Lower DATABASE_POOL_SIZE or the workers, raise max_connections, or put PgBouncer between."
    return [Finding("limits", "problem", text_, advice)]


def _workers() -> int:
    """As uvicorn reads it."""
    workers = os.environ.get("WEB_CONCURRENCY", "")
    return max(1, int(workers)) if workers.isdigit() else 1


async def check_disk(settings: Settings) -> Sequence[Finding]:
    database = AsyncDatabaseManager.from_settings(settings)
    if not database.is_sqlite:
        return []
    path = sqlite_path(database.url.database or "").absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    usage = shutil.disk_usage(folder)
    text_ = f"{usage.free / 1024**3:.1f} GiB are free where the database is ({usage.free / usage.total:.0%})."
    if usage.free >= LEAST_FREE_BYTES and usage.free >= usage.total * LEAST_FREE_SHARE:
        return [Finding("disk", "ok", text_)]
    advice = "Make room: without it every write is refused. `python -m src purge` forgets what has ended."
    return [Finding("disk", "warning", text_, advice)]
