"""Many people at once, through the real command: `python -m src users import`."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from sqlalchemy import select

from src.core.passwords import needs_rehash
from src.db import AsyncDatabaseManager, BaseModel
from src.db.models import UserModel
from src.services.imports import BATCH
from tests.support.databases import count_users
from tests.support.imports import lines
from tests.support.processes import ROOT
from tests.support.service import StartService
from tests.support.steps import PASSWORD, log_in

pytestmark = pytest.mark.slow

FEW, MANY = 10_000, 100_000


@dataclass(frozen=True)
class Finished:
    """What a command printed, how long it took, and how much memory it had when it had most."""

    printed: dict[str, Any]
    seconds: float
    megabytes: float


def write_people(file: Path, name: str, count: int) -> str:
    """All with one password: a hash for each would take longer than the import."""
    hashed_password = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode().replace("$2b$", "$2y$")
    with file.open("w") as output:
        for number in range(count):
            person = {"email": f"{name}{number}@example.com", "hashed_password": hashed_password, "name": "Somebody"}
            output.write(json.dumps(person) + "\n")
    return str(file)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "src", "users", "import", "--json", *arguments]


# A process counts the memory of the one that started it as its own peak, so somebody small has to start the command.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run_import(url: str, *arguments: str) -> Finished:
    started = time.monotonic()
    environment = os.environ | {"DATABASE_URL": url}
    measure = [sys.executable, "-c", MEASURE, *command(*arguments)]
    process = subprocess.run(measure, cwd=ROOT, env=environment, stdout=PIPE, check=True)
    printed, peak = process.stdout.splitlines()
    return Finished(json.loads(printed), time.monotonic() - started, int(peak) / 1024)


async def digest(database: AsyncDatabaseManager) -> tuple[int, str]:
    """How many rows there are, and a hash of all that they hold."""
    count, hash_ = 0, hashlib.sha256()
    async with database.session() as session:
        for table in BaseModel.metadata.sorted_tables:
            async for row in await session.stream(table.select().order_by("id")):
                count += 1
                hash_.update(repr(tuple(row)).encode())
    return count, hash_.hexdigest()


async def test_a_hundred_thousand_people_come_in_flat_memory_and_keep_their_passwords(
    start_service: StartService, database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    few, many = write_people(tmp_path / "few.jsonl", "few", FEW), write_people(tmp_path / "many.jsonl", "many", MANY)

    looked = await asyncio.to_thread(run_import, database_url, many, "--dry-run")
    of_few = await asyncio.to_thread(run_import, database_url, few)
    of_many = await asyncio.to_thread(run_import, database_url, many)
    stored = await digest(database)
    again = await asyncio.to_thread(run_import, database_url, many)

    print({"dry run": looked, "few": of_few, "many": of_many, "again": again})  # noqa: T201 - figures for `pytest -s`
    assert looked.printed == of_many.printed == {"imported": MANY, "unchanged": 0, "refused": 0}
    assert of_few.printed == {"imported": FEW, "unchanged": 0, "refused": 0}
    assert again.printed == {"imported": 0, "unchanged": MANY, "refused": 0}
    assert await digest(database) == stored
    assert stored[0] == 2 * (FEW + MANY)  # a user and an event for each
    assert max(each.megabytes for each in (looked, of_many, again)) < 1.2 * of_few.megabytes
    service = await start_service()
    await log_in(service, f"many{MANY - 1}@example.com")
    async with database.session() as session:
        query = select(UserModel.hashed_password).where(UserModel.email == f"many{MANY - 1}@example.com")
        assert not needs_rehash((await session.scalars(query)).one(), 4)


async def start_import(url: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *command("-"), cwd=ROOT, env=os.environ | {"DATABASE_URL": url}, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def test_an_import_that_is_interrupted_says_how_to_go_on(
    database_url: str, database: AsyncDatabaseManager
) -> None:
    content = lines(2 * BATCH + 10)
    process = await start_import(database_url)
    assert process.stdin is not None
    process.stdin.write(b"".join(content[: BATCH + 10]))
    async with asyncio.timeout(30):
        while await count_users(database) < BATCH:
            await asyncio.sleep(0.05)

    process.send_signal(signal.SIGINT)
    process.stdin.close()
    printed, told = await process.communicate()
    stored = await count_users(database)
    again = await start_import(database_url)
    finished, _ = await again.communicate(b"".join(content))

    assert (process.returncode, printed) == (130, b"")
    assert told == b"Interrupted. Repeat the import: it goes on where it stopped.\n"
    assert stored == BATCH
    assert json.loads(finished) == {"imported": BATCH + 10, "unchanged": BATCH, "refused": 0}
