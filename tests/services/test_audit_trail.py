"""Nobody changes an event: no code tries to, and on PostgreSQL the service's role, as documented, could not."""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest_asyncio
from sqlalchemy import make_url, select, text, update
from sqlalchemy.exc import ProgrammingError

from src.db import AsyncDatabaseManager, BaseModel
from src.db.base import utc_now
from src.db.migrations import migrate, prepare
from src.db.models import AuditEventModel, EventKind, UserModel
from src.services.purge import Purged, purge
from tests.support.databases import PostgreSQL
from tests.support.factories import expire_links, id_of
from tests.support.service import Service, make_settings, serve
from tests.support.steps import (
    PASSWORD,
    create_account,
    create_admin,
    create_client,
    log_in,
    post_log_in,
    service_token,
    sign_up,
)

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "audit-trail.md").read_text("utf-8")


def test_no_code_updates_an_event_nor_deletes_one_but_for_the_purge_of_every_table() -> None:
    changing = re.compile(
        r"update\(\s*AuditEventModel|session\.merge\(|UPDATE audit_events"
        r"|delete\(\s*AuditEventModel|DELETE FROM audit_events"
    )

    found = [
        (str(path.relative_to(ROOT)), match)
        for path in sorted((ROOT / "src").rglob("*.py"))
        for match in changing.findall(path.read_text("utf-8"))
    ]

    assert found == []


def test_the_document_tells_of_every_kind_and_every_field() -> None:
    names = re.findall(r"`([a-z_]+)`", DOCUMENT)

    assert set(EventKind) - set(names) == set()
    assert set(AuditEventModel.__table__.columns.keys()) - {"updated_at"} - set(names) == set()


@dataclass
class Roles:
    """A database with the roles of the document, and nothing else in it."""

    owner: AsyncDatabaseManager
    service: AsyncDatabaseManager


def documented_statements() -> tuple[list[str], list[str]]:
    """For the superuser, and for the owner."""
    once, after_migrations = re.findall(r"```sql\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    return once.split(";\n")[:-1], after_migrations.split(";\n")[:-1]


async def execute(database: AsyncDatabaseManager, *statements: str) -> None:
    async with database.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await autocommit.execute(text(statement))


@pytest_asyncio.fixture
async def roles(postgresql: PostgreSQL) -> AsyncGenerator[Roles, None]:
    superuser = AsyncDatabaseManager(postgresql.url("postgres"))
    url = make_url(postgresql.url("auth"))
    owner = AsyncDatabaseManager(url.set(username="auth_owner"))
    service = AsyncDatabaseManager(url.set(username="auth_service"))
    once, after_migrations = documented_statements()
    await execute(superuser, *once)
    await migrate(owner)
    await execute(owner, *after_migrations)
    yield Roles(owner, service)
    await owner.disconnect()
    await service.disconnect()
    await execute(superuser, "DROP DATABASE auth WITH (FORCE)", "DROP ROLE auth_owner", "DROP ROLE auth_service")
    await superuser.disconnect()


@pytest_asyncio.fixture
async def restricted(roles: Roles) -> AsyncGenerator[Service, None]:
    """The service as the documented role."""
    async with serve(roles.service) as service:
        yield service


async def events_of(database: AsyncDatabaseManager) -> list[tuple[str, str, bool, bool, str | None]]:
    """What, how it ended, whether it tells on whom and by whom, and from where."""
    async with database.session() as session:
        events = await session.scalars(select(AuditEventModel).order_by(AuditEventModel.id))
        return [
            (event.kind, event.outcome, event.user_id is not None, event.actor_id is not None, event.origin)
            for event in events
        ]


async def test_the_whole_service_works_as_the_documented_role(restricted: Service, roles: Roles) -> None:
    await prepare(roles.service, auto_migrate=False)
    user_id = await create_account(restricted)
    ana, root = await log_in(restricted), await create_admin(restricted)
    refused = await post_log_in(restricted, password="a-wrong-password")
    token = await service_token(restricted, await create_client(restricted, "users:write"))
    await restricted.client.patch(
        f"/api/users/{user_id}", json={"name": "A"}, headers={"Authorization": f"Bearer {token}"}
    )
    await restricted.client.patch(f"/api/users/{user_id}", json={"name": "B"}, headers=root.bearer)

    left = await restricted.client.post("/auth/delete-account", json={"current_password": PASSWORD}, headers=ana.bearer)

    assert (refused.status_code, left.status_code) == (401, 204)
    assert await events_of(roles.owner) == [
        ("sign_up", "success", False, False, None),
        ("activation", "success", False, False, None),
        ("log_in", "success", False, False, None),
        ("user_creation", "success", True, False, "command line"),
        ("log_in", "success", True, True, "127.0.0.1"),
        ("log_in", "failure", False, False, None),
        ("client_creation", "success", False, False, "command line"),
        ("client_token", "success", False, False, "127.0.0.1"),
        ("user_update", "success", False, False, "127.0.0.1"),
        ("user_update", "success", False, True, "127.0.0.1"),
        ("account_deletion", "success", False, False, None),
    ]


async def test_its_purge_forgets_people_and_leaves_events_to_the_owners(restricted: Service, roles: Roles) -> None:
    await sign_up(restricted)
    await expire_links(roles.service)
    long_ago = utc_now() - timedelta(days=400)
    async with roles.owner.session() as session:
        await session.execute(update(UserModel).values(created_at=long_ago))
        await session.execute(update(AuditEventModel).values(id=id_of(long_ago)))
        await session.commit()

    by_service = await purge(roles.service, make_settings())
    left = await events_of(roles.owner)
    by_owner = await purge(roles.owner, make_settings())

    assert by_service == Purged(tokens=1, sign_ups=1)
    assert left == [("sign_up", "success", False, False, None)]
    assert by_owner == Purged(events=1)


FORBIDDEN = (
    "UPDATE audit_events SET outcome = 'failure'",
    "UPDATE audit_events SET origin = NULL",
    "DELETE FROM audit_events",
    "TRUNCATE audit_events",
    "TRUNCATE users CASCADE",
    "DROP TABLE audit_events",
    "ALTER TABLE audit_events DISABLE TRIGGER ALL",
    "DROP TRIGGER forget_origin ON audit_events",
    "CREATE OR REPLACE FUNCTION forget_origin() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "SET ROLE auth_owner",
)


async def sqlstate_of(database: AsyncDatabaseManager, statement: str) -> str | None:
    try:
        await execute(database, statement)
    except ProgrammingError as error:
        return str(getattr(error.orig, "sqlstate", None))
    return None


async def test_the_documented_role_can_do_nothing_to_an_event(restricted: Service, roles: Roles) -> None:
    await sign_up(restricted)
    before = await events_of(roles.owner)

    refusals = {statement: await sqlstate_of(roles.service, statement) for statement in FORBIDDEN}

    assert refusals == dict.fromkeys(FORBIDDEN, "42501")  # insufficient privilege
    assert await events_of(roles.owner) == before


async def test_the_documented_grants_name_every_table(roles: Roles) -> None:
    async with roles.owner.session() as session:
        granted = await session.scalars(
            text("SELECT DISTINCT table_name FROM information_schema.table_privileges WHERE grantee = 'auth_service'")
        )
        assert set(granted) == {"alembic_version", *BaseModel.metadata.tables}
