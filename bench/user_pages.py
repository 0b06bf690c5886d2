"""Does page 2,000 of the users cost as much as page 1? `python -m bench.user_pages`

Starts the service on more than 200,000 users, on SQLite and on a PostgreSQL of its own, and lists the first page and
the 2,000th in turns, so that what else the machine does hits both. It fails when their medians differ by more than a
fifth. Beside it, for comparison, what the same rows cost the database by key and by OFFSET.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection
from uuid import UUID

from sqlalchemy import Select, insert, select, text
from uuid_utils.compat import uuid7

from bench.databases import DATABASES
from bench.limits import Limit, report
from bench.service import PASSWORD, running_service
from src.api.schemas.fields import write_cursor
from src.core.passwords import UNUSABLE_PASSWORD, hash_password
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.migrations import migrate
from src.db.models import UserModel

LIMIT = 1.2  # the dearer page ÷ the cheaper one
PAGE_SIZE = 100
FAR_PAGE = 2_000
USERS = (FAR_PAGE + 10) * PAGE_SIZE
CHUNK = 10_000
READS = 300  # of each page
QUERIES = 20
WARM_UP = 30
ADMIN = {"email": "admin@example.com", "password": PASSWORD}


async def seed(url: str) -> list[UUID]:
    """An administrator, and then the others; the ids in order of age."""
    database = AsyncDatabaseManager(url)
    await migrate(database)
    ids = [uuid7() for _ in range(USERS)]
    shared = {"name": "Somebody", "hashed_password": UNUSABLE_PASSWORD, "activated_at": utc_now()}
    async with database.session() as session:
        session.add(
            UserModel(
                id=ids[0], email=ADMIN["email"], hashed_password=hash_password(ADMIN["password"], 4), is_admin=True
            )
        )
        await session.flush()
        for start in range(1, USERS, CHUNK):
            rows = [{"id": id_, "email": f"{id_}@example.com"} | shared for id_ in ids[start : start + CHUNK]]
            await session.execute(insert(UserModel), rows)
        await session.commit()
        await session.execute(text("ANALYZE"))  # as PostgreSQL does by itself soon
        await session.commit()
    await database.disconnect()
    return ids


def log_in(connection: HTTPConnection) -> dict[str, str]:
    """The header of an administrator."""
    connection.request("POST", "/auth/login", json.dumps(ADMIN), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    return {"Authorization": f"Bearer {answer['access_token']}"}


def time_page(connection: HTTPConnection, path: str, headers: dict[str, str], first: UUID) -> float:
    """Seconds until the page that begins with this user has arrived."""
    start = time.perf_counter()
    connection.request("GET", path, headers=headers)
    content = connection.getresponse().read()
    seconds = time.perf_counter() - start
    page = json.loads(content)
    assert page["next_cursor"], page
    assert (len(page["items"]), page["items"][0]["id"]) == (PAGE_SIZE, str(first))
    return seconds


def measure_pages(url: str, ids: Sequence[UUID]) -> tuple[float, float]:
    """The median of the first page and of the far one, over HTTP."""
    before = (FAR_PAGE - 1) * PAGE_SIZE
    first_path = f"/api/users?limit={PAGE_SIZE}"
    far_path = f"{first_path}&cursor={write_cursor(ids[before - 1])}"
    with running_service(url) as service, closing(service.connect()) as connection:
        headers = log_in(connection)
        pairs = [
            (
                time_page(connection, first_path, headers, ids[0]),
                time_page(connection, far_path, headers, ids[before]),
            )
            for _ in range(WARM_UP + READS)
        ]
    first, far = zip(*pairs[WARM_UP:], strict=True)
    return statistics.median(first), statistics.median(far)


async def measure_queries(url: str, ids: Sequence[UUID]) -> tuple[float, float]:
    """The median of the far page by key and by OFFSET, in the database alone."""
    before = (FAR_PAGE - 1) * PAGE_SIZE
    page = select(UserModel.id, UserModel.email).order_by(UserModel.id).limit(PAGE_SIZE)
    by_key, by_offset = page.where(UserModel.id > ids[before - 1]), page.offset(before)
    database = AsyncDatabaseManager(url)
    async with database.session() as session:

        async def time_query(query: Select[UUID, str]) -> float:
            start = time.perf_counter()
            rows = (await session.execute(query)).all()
            seconds = time.perf_counter() - start
            assert (len(rows), rows[0].id) == (PAGE_SIZE, ids[before])
            return seconds

        pairs = [(await time_query(by_key), await time_query(by_offset)) for _ in range(QUERIES)]
    await database.disconnect()
    key, offset = zip(*pairs, strict=True)
    return statistics.median(key), statistics.median(offset)


def main() -> int:
    """The exit status: 1 when one of the pages costs more than the other than `LIMIT` allows."""
    lines, limits = list[str](), list[Limit]()
    for name, database in DATABASES.items():
        with database() as create:
            url = create("users")
            ids = asyncio.run(seed(url))
            first, far = measure_pages(url, ids)
            by_key, by_offset = asyncio.run(measure_queries(url, ids))
        dearer = max(far / first, first / far)
        limits.append(Limit(f"the dearer page ÷ the cheaper one on {name}", dearer, at_most=LIMIT))
        times = (first, far, by_key, by_offset)
        lines.append(f"{name:12}" + "".join(f"{seconds * 1000:>9.1f} ms" for seconds in times) + f"{far / first:>9.2f}")

    print(f"\nGET /api/users?limit={PAGE_SIZE} on {USERS:,} users, medians of {READS}")
    print(f"{'':12}{'page 1':>12}{f'page {FAR_PAGE:,}':>12}{'its query':>12}{'by OFFSET':>12}{'ratio':>9}")
    print(*lines, sep="\n")
    return report(limits)


if __name__ == "__main__":
    sys.exit(main())
