"""The outbox as operators see it: `python -m src outbox`."""

import asyncio
import json
from uuid import uuid4

import pytest
from typer.testing import Result

from src.db import AsyncDatabaseManager
from src.db.models import OutboxEmailModel, OutboxStatus
from src.db.repositories import OutboxRepository
from tests.support.outbox import add_email
from tests.support.processes import run


async def outbox(database_url: str, *arguments: str) -> Result:
    return await asyncio.to_thread(run, "outbox", *arguments, DATABASE_URL=database_url)


@pytest.fixture
async def emails(database: AsyncDatabaseManager) -> dict[str, OutboxEmailModel]:
    return {
        "waiting": await add_email(database, "waiting@example.com", OutboxStatus.QUEUED, 0),
        "dead": await add_email(database, "dead@example.com", OutboxStatus.DEAD, 25),
        "refused": await add_email(database, "refused@example.com", OutboxStatus.REFUSED, 1),
        "sent": await add_email(database, "sent@example.com", OutboxStatus.SENT, 1),
        "dropped": await add_email(database, "dropped@example.com", OutboxStatus.DROPPED, 0),
    }


async def read(database: AsyncDatabaseManager, email: OutboxEmailModel) -> tuple[str, int]:
    async with database.session() as session:
        found = await OutboxRepository(session).get_by_id(email.id)
    return found.status, found.attempts


async def test_list_shows_what_waits_and_what_is_dead_and_why(
    database_url: str, emails: dict[str, OutboxEmailModel]
) -> None:
    listed = await outbox(database_url, "list")

    assert listed.exit_code == 0, listed.stderr
    waiting, dead, refused = listed.stdout.splitlines()
    assert waiting.startswith(f"{emails['waiting'].id}  queued   account_deleted    attempts  0  due ")
    assert "waiting@example.com" in waiting
    assert dead.startswith(f"{emails['dead'].id}  dead     account_deleted    attempts 25  due ")
    assert dead.endswith("dead@example.com  SMTPDataError 554")
    assert refused.startswith(f"{emails['refused'].id}  refused  account_deleted    attempts  1  due ")
    assert "canary-of-the-content" not in listed.stdout


async def test_list_prints_the_same_in_json_for_programs(
    database_url: str, emails: dict[str, OutboxEmailModel]
) -> None:
    listed = await outbox(database_url, "list", "--json")

    waiting, dead, _ = json.loads(listed.stdout)
    assert waiting == {
        "id": str(emails["waiting"].id),
        "status": "queued",
        "kind": "account_deleted",
        "attempts": 0,
        "due_at": emails["waiting"].due_at.isoformat().replace("+00:00", "Z"),
        "to_email": "waiting@example.com",
        "last_error": None,
    }
    assert (dead["status"], dead["attempts"], dead["last_error"]) == ("dead", 25, "SMTPDataError 554")
    assert "canary-of-the-content" not in listed.stdout


async def test_retry_counts_in_json_for_programs(database_url: str, emails: dict[str, OutboxEmailModel]) -> None:
    retried = await outbox(database_url, "retry", "--json")

    assert json.loads(retried.stdout) == {"queued": 2}


async def test_list_shows_no_more_than_it_is_asked_for(database_url: str, emails: dict[str, OutboxEmailModel]) -> None:
    assert len((await outbox(database_url, "list", "--limit", "2")).stdout.splitlines()) == 2
    for limit in ("0", "-1", "9" * 20):
        assert (await outbox(database_url, "list", "--limit", limit)).exit_code == 2


async def test_retry_queues_one_dead_letter_with_all_its_attempts_again(
    database_url: str, database: AsyncDatabaseManager, emails: dict[str, OutboxEmailModel]
) -> None:
    retried = await outbox(database_url, "retry", str(emails["dead"].id))

    assert (retried.exit_code, retried.stdout) == (0, "Queued 1 again.\n")
    assert await read(database, emails["dead"]) == (OutboxStatus.QUEUED, 0)
    assert await read(database, emails["refused"]) == (OutboxStatus.REFUSED, 1)


async def test_retry_alone_queues_every_dead_letter_and_nothing_else(
    database_url: str, database: AsyncDatabaseManager, emails: dict[str, OutboxEmailModel]
) -> None:
    retried = await outbox(database_url, "retry")

    assert (retried.exit_code, retried.stdout) == (0, "Queued 2 again.\n")
    for name in ("dead", "refused"):
        assert await read(database, emails[name]) == (OutboxStatus.QUEUED, 0)
    assert await read(database, emails["sent"]) == (OutboxStatus.SENT, 1)


async def test_retry_of_what_is_no_dead_letter_says_so(database_url: str, emails: dict[str, OutboxEmailModel]) -> None:
    for id_ in (uuid4(), emails["sent"].id, emails["waiting"].id):
        retried = await outbox(database_url, "retry", str(id_))

        assert retried.exit_code == 1
        assert retried.stderr == f"There is no dead letter {id_}: see `python -m src outbox list`.\n"
