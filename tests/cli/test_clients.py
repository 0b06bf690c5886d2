"""Other services as operators keep them: `python -m src clients`."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from typer.testing import Result

from src.db import AsyncDatabaseManager
from src.db.models import AuditEventModel, ServiceClientModel
from src.services.clients import ClientSecret
from tests.support.processes import run
from tests.support.service import Service
from tests.support.steps import post_client_credentials

CREATE = ("create", "reports", "--scope", "users:read", "--scope", "audit:read")


async def clients(url: str, *arguments: str) -> Result:
    return await asyncio.to_thread(run, "clients", *arguments, DATABASE_URL=url)


async def print_secret(url: str, *arguments: str) -> ClientSecret:
    """What a command prints in JSON, which holds nothing else."""
    result = await clients(url, *arguments, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [*printed] == ["client_id", "client_secret"]
    return ClientSecret(UUID(printed["client_id"]), printed["client_secret"])


async def list_json(url: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = json.loads((await clients(url, "list", "--json")).stdout)
    return lines


async def status_of(service: Service, secret: ClientSecret) -> int:
    return (await post_client_credentials(service, secret)).status_code


async def find_hashes(database: AsyncDatabaseManager) -> set[str]:
    async with database.session() as session:
        rows = (await session.scalars(select(ServiceClientModel))).all()
    return {hash_ for row in rows for hash_ in (row.secret_hash, row.previous_secret_hash) if hash_}


async def test_a_client_gets_access_tokens_for_its_scopes_with_what_create_prints(
    service: Service, database_url: str
) -> None:
    secret = await print_secret(database_url, *CREATE)

    response = await post_client_credentials(service, secret)

    assert (response.status_code, response.json()["scope"]) == (200, "audit:read users:read")


async def test_a_person_is_shown_the_secret_and_told_that_it_is_the_only_time(
    service: Service, database_url: str
) -> None:
    created = await clients(database_url, *CREATE)

    lines = created.stdout.splitlines()
    client_id, client_secret = (line.split()[1] for line in lines[:2])
    assert [line.split()[0] for line in lines[:2]] == ["client_id", "client_secret"]
    assert lines[2:] == ["The secret cannot be shown again: hand it to the service now."]
    assert await status_of(service, ClientSecret(UUID(client_id), client_secret)) == 200


async def test_list_shows_what_each_client_may_and_never_a_secret(
    service: Service, database_url: str, database: AsyncDatabaseManager
) -> None:
    first = await print_secret(database_url, *CREATE)
    second = await print_secret(database_url, "rotate", "reports")
    idle = await print_secret(database_url, "create", "idle", "--scope", "users:write")
    idle_again = await print_secret(database_url, "rotate", "idle")
    await clients(database_url, "revoke", "idle")
    await post_client_credentials(service, second)

    reports, revoked = await list_json(database_url)
    text = await clients(database_url, "list")

    assert [*reports] == ["id", "name", "scopes", "created_at", "last_used_at", "previous_secret_until", "revoked_at"]
    assert (reports["id"], reports["name"]) == (str(second.client_id), "reports")
    assert (reports["scopes"], reports["revoked_at"]) == (["audit:read", "users:read"], None)
    assert reports["last_used_at"] > reports["created_at"]
    assert (revoked["last_used_at"], revoked["previous_secret_until"]) == (None, None)
    assert revoked["revoked_at"] > revoked["created_at"]
    shown_reports, shown_revoked = text.stdout.splitlines()
    for part in (str(second.client_id), "reports  audit:read users:read  created 20", "last used 20", "valid until 20"):
        assert part in shown_reports
    assert ", never used, revoked 20" in shown_revoked
    secrets = {each.client_secret for each in (first, second, idle, idle_again)} | await find_hashes(database)
    assert len(secrets) == 8
    for output in (text.output, json.dumps([reports, revoked])):
        assert not [each for each in secrets if each in output]


async def test_list_shows_a_hundred_and_more(database_url: str, database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        session.add_all(ServiceClientModel(name=f"{i}", scopes=[], secret_hash="x") for i in range(101))
        await session.commit()

    assert [line["name"] for line in await list_json(database_url)] == [f"{i}" for i in range(101)]


async def test_after_a_rotation_the_secret_before_works_for_as_long_as_is_asked(
    service: Service, database_url: str
) -> None:
    old = await print_secret(database_url, *CREATE)

    new = await print_secret(database_url, "rotate", "reports", "--overlap-hours", "2")

    assert new.client_id == old.client_id
    assert [await status_of(service, each) for each in (old, new)] == [200, 200]
    (line,) = await list_json(database_url)
    left = datetime.fromisoformat(line["previous_secret_until"]) - datetime.now(UTC)
    assert timedelta(minutes=119) < left <= timedelta(hours=2)


async def test_a_secret_that_has_leaked_is_ended_at_once(service: Service, database_url: str) -> None:
    leaked = await print_secret(database_url, *CREATE)

    new = await print_secret(database_url, "rotate", "reports", "--overlap-hours", "0")

    assert [await status_of(service, each) for each in (leaked, new)] == [401, 200]
    assert [line["previous_secret_until"] for line in await list_json(database_url)] == [None]


async def test_a_client_that_is_revoked_is_refused_and_its_name_is_free(service: Service, database_url: str) -> None:
    secret = await print_secret(database_url, *CREATE)

    revoked = await clients(database_url, "revoke", "reports")

    assert revoked.output == "Revoked reports: its secrets and access tokens are refused from now on.\n"
    assert await status_of(service, secret) == 401
    again = await print_secret(database_url, *CREATE)
    assert [await status_of(service, each) for each in (secret, again)] == [401, 200]


async def test_every_command_leaves_an_event_of_the_operators(
    database_url: str, database: AsyncDatabaseManager
) -> None:
    secret = await print_secret(database_url, *CREATE)
    await clients(database_url, *CREATE)
    await print_secret(database_url, "rotate", "reports")
    await clients(database_url, "revoke", "reports")

    event = AuditEventModel
    columns = (event.kind, event.outcome, event.reason, event.client_id, event.actor_id, event.origin)
    async with database.session() as session:
        events = (await session.execute(select(*columns).order_by(event.id))).all()
    (client,) = {id_ for _, _, _, id_, _, _ in events if id_}
    assert client == secret.client_id
    assert [tuple(each) for each in events] == [
        ("client_creation", "success", None, client, None, "command line"),
        ("client_creation", "failure", "CLIENT_NAME_TAKEN", None, None, "command line"),
        ("client_rotation", "success", None, client, None, "command line"),
        ("client_revocation", "success", None, client, None, "command line"),
    ]


async def test_a_refusal_is_one_sentence(database_url: str) -> None:
    await print_secret(database_url, *CREATE)

    refused = [
        await clients(database_url, *arguments) for arguments in (CREATE, ("rotate", "other"), ("revoke", "other"))
    ]

    assert [(each.exit_code, each.stdout) for each in refused] == [(1, "")] * 3
    assert [each.stderr for each in refused] == [
        "A client has this name: choose another, rotate the secret of that one, or revoke it first.\n",
        "There is no such client.\n",
        "There is no such client.\n",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "reports", "--scope", "users:all"), ("users:read", "users:write", "audit:read")),
        (("create", "reports"), ("users:read", "users:write", "audit:read")),
        (("create", "\x1b[2J", "--scope", "users:read"), ("NAME", "control characters")),
        (("create", "x" * 101, "--scope", "users:read"), ("NAME", "at most 100 characters")),
        (("create", " ", "--scope", "users:read"), ("NAME", "at least 1 characters")),
        (("rotate", "reports", "--overlap-hours", "-1"), ("--overlap-hours", "equal to 0")),
        (("rotate", "reports", "--overlap-hours", "721"), ("--overlap-hours", "equal to 720")),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = run("clients", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    said = " ".join(result.stderr.replace("│", " ").split())  # without the box that is drawn around it
    assert [word for word in words if word not in said] == []
