import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from src.core.kinds import TokenPurpose
from src.db import AsyncDatabaseManager, BaseModel
from src.db.base import utc_now
from src.db.connections import Timeouts
from src.db.migrations import (
    DatabaseNotReadyError,
    _revisions,
    head,
    is_current,
    migrate,
    migrating_connection,
    prepare,
)
from src.db.models import AuditEventModel
from src.db.repositories import AuditEventRepository, UserRepository, UserTokenRepository
from tests.support.databases import connected, writing
from tests.support.factories import make_user
from tests.support.processes import ROOT


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=True,
    )


async def tables(url: str) -> set[str]:
    database = AsyncDatabaseManager(url)
    async with database.engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    await database.disconnect()
    return set(names)


async def test_models_and_migrations_agree(database: AsyncDatabaseManager) -> None:
    def differences(connection: Connection) -> object:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return compare_metadata(context, BaseModel.metadata)

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


@pytest.mark.slow
@pytest.mark.slow
async def test_alembic_goes_up_and_down_from_the_command_line(empty_url: str) -> None:
    alembic(empty_url, "upgrade", "head")
    assert await tables(empty_url) == {"alembic_version", *BaseModel.metadata.tables}

    alembic(empty_url, "downgrade", "base")
    assert await tables(empty_url) == {"alembic_version"}
    assert await functions(empty_url) == set()

    database = AsyncDatabaseManager(empty_url)
    await migrate(database)
    assert await origins_after_a_deletion(database) == [("on", None), ("by", None), ("on and by another", "192.0.2.1")]
    await database.disconnect()


@pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
@pytest.mark.slow
async def test_alembic_prints_the_sql_for_people_who_apply_it_by_hand(empty_url: str) -> None:
    printed = alembic(empty_url, "upgrade", "head", "--sql").stdout

    database = AsyncDatabaseManager(empty_url)
    async with database.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(printed)
    assert await tables(empty_url) == {"alembic_version", *BaseModel.metadata.tables}
    assert await functions(empty_url) == {"forget_origin"}
    assert await origins_after_a_deletion(database) == [("on", None), ("by", None), ("on and by another", "192.0.2.1")]
    async with database.session() as session:
        assert await is_current(session)
    await database.disconnect()


async def functions(url: str) -> set[str]:
    """Those that the migrations have made; SQLite has none."""
    database = AsyncDatabaseManager(url)
    names = set[str]()
    if not database.is_sqlite:
        async with database.session() as session:
            query = text("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
            names = set(await session.scalars(query))
    await database.disconnect()
    return names


async def origins_after_a_deletion(database: AsyncDatabaseManager) -> list[tuple[str | None, str | None]]:
    """Where three events came from, once the person is deleted whom they were done to or by."""
    async with database.session() as session:
        leaving, staying = [await UserRepository(session).add(make_user(email=f"{n}@example.com")) for n in range(2)]
        events = {
            "on": {"user_id": leaving.id},
            "by": {"user_id": staying.id, "actor_id": leaving.id},
            "on and by another": {"user_id": leaving.id, "actor_id": staying.id},
        }
        for changes, people in events.items():
            event = AuditEventModel(kind="", outcome="", changes=changes, origin="192.0.2.1", **people)
            await AuditEventRepository(session).add(event)
        await session.commit()
        await UserRepository(session).delete(leaving)
        await session.commit()
    async with database.session() as session:
        return [(event.changes, event.origin) for event in await AuditEventRepository(session).list()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alembic", "alembic.config", "alembic.op"])
def test_the_folder_of_migrations_does_not_shadow_the_library(name: str) -> None:
    command = [sys.executable, "-c", f"import {name}; print({name}.__file__)"]

    path = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "site-packages" in path


async def test_migrating_twice_changes_nothing(empty_url: str) -> None:
    database = AsyncDatabaseManager(empty_url)
    async with database.session() as session:
        assert not await is_current(session)

    for _ in range(2):
        await migrate(database)

        async with database.session() as session:
            assert await is_current(session)
    await database.disconnect()


class TestPrepare:
    @pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
    async def test_a_file_is_migrated_without_being_asked(self, empty_url: str) -> None:
        database = AsyncDatabaseManager(empty_url)

        await prepare(database, auto_migrate=False)

        async with database.session() as session:
            assert await is_current(session)
        await database.disconnect()

    @pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
    async def test_a_server_is_migrated_only_on_request(self, empty_url: str) -> None:
        database = AsyncDatabaseManager(empty_url)
        with pytest.raises(DatabaseNotReadyError, match="not those that this version needs"):
            await prepare(database, auto_migrate=False)
        assert await tables(empty_url) == set()

        await prepare(database, auto_migrate=True)

        await prepare(database, auto_migrate=False)
        await database.disconnect()

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("sqlite+aiosqlite:///:memory:", "is for tests: name a file"),
            ("sqlite:////dev/null/users.db", "cannot be opened"),
            ("postgresql://nobody@127.0.0.1:1/nothing", "cannot be opened"),
        ],
    )
    async def test_what_cannot_be_worked_in_is_refused_with_the_reason(self, url: str, sentence: str) -> None:
        database = AsyncDatabaseManager(url)

        with pytest.raises(DatabaseNotReadyError, match=sentence):
            await prepare(database, auto_migrate=True)
        await database.disconnect()


async def test_a_database_of_a_later_version_is_current_and_left_as_it_is(
    database: AsyncDatabaseManager, migrated_sqlite_copy: str
) -> None:
    later = AsyncDatabaseManager(migrated_sqlite_copy)
    async with later.session() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = 'of-later'"))
        await session.commit()

    await migrate(later)

    async with later.session() as session:
        assert await is_current(session)
        assert await session.scalar(text("SELECT version_num FROM alembic_version")) == "of-later"
    await later.disconnect()


async def test_processes_that_migrate_together_take_turns(empty_url: str) -> None:
    databases = [AsyncDatabaseManager(empty_url) for _ in range(5)]

    await asyncio.gather(*(migrate(database) for database in databases))

    async with databases[0].session() as session:
        assert await session.scalar(text("SELECT version_num FROM alembic_version")) == head()
    await asyncio.gather(*(database.disconnect() for database in databases))


@asynccontextmanager
async def migrating_elsewhere(url: str) -> AsyncGenerator[None, None]:
    """Another process migrates meanwhile, and takes its time."""
    async with connected(url) as database, migrating_connection(database):
        yield


IMPATIENT = Timeouts(lock=0.1, statement=0.1)


async def wait_for_log(caplog: pytest.LogCaptureFixture, sentence: str) -> None:
    async with asyncio.timeout(10):
        while sentence not in caplog.text:
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_an_instance_that_waits_for_another_to_migrate_says_so_and_waits_as_long_as_it_takes(
    empty_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.db.connections.MIGRATION_BUSY_TIMEOUT_SECONDS", 0.1)
    async with connected(empty_url, timeouts=IMPATIENT) as database:
        async with migrating_elsewhere(empty_url):
            waiting = asyncio.create_task(prepare(database, auto_migrate=True))
            await wait_for_log(caplog, "waiting for it to finish")
            await asyncio.wait([waiting], timeout=0.5)
            assert not waiting.done()

        await waiting

        async with database.session() as session:
            assert await is_current(session)


@pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
async def test_a_migration_may_take_longer_than_a_request(empty_url: str) -> None:
    async with connected(empty_url, timeouts=IMPATIENT) as database:
        async with database.session() as session:
            with pytest.raises(TimeoutError):
                await session.execute(text("SELECT pg_sleep(0.2)"))

        async with migrating_connection(database) as connection:
            await connection.execute(text("SELECT pg_sleep(0.2)"))


@pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
async def test_a_database_that_does_not_answer_in_time_is_refused_with_a_sentence(empty_url: str) -> None:
    async with connected(empty_url) as database:
        await migrate(database)
        async with writing(database) as locking:
            await locking.execute(text("LOCK TABLE alembic_version"))
            async with connected(empty_url, timeouts=IMPATIENT) as impatient:
                with pytest.raises(DatabaseNotReadyError, match="does not answer in time"):
                    await prepare(impatient, auto_migrate=False)


async def fail_halfway(database: AsyncDatabaseManager) -> None:
    async with migrating_connection(database) as connection:
        await connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise RuntimeError("halfway")


async def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    database = AsyncDatabaseManager(empty_url)

    with pytest.raises(RuntimeError, match="halfway"):
        await fail_halfway(database)

    assert await tables(empty_url) == set()
    await database.disconnect()


def rebuild_users(connection: Connection) -> None:
    with Operations(MigrationContext.configure(connection)).batch_alter_table("users", recreate="always"):
        pass


async def test_rebuilding_a_table_in_sqlite_keeps_what_refers_to_it(migrated_sqlite_copy: str) -> None:
    database = AsyncDatabaseManager(migrated_sqlite_copy)
    async with database.session() as session:
        user = await UserRepository(session).add(make_user())
        await UserTokenRepository(session).issue(
            user.id, TokenPurpose.ACTIVATION, expires_at=utc_now() + timedelta(days=1)
        )
        await session.commit()

    async with migrating_connection(database) as connection:
        await connection.run_sync(rebuild_users)

    async with database.session() as session:
        assert await UserTokenRepository(session).count() == 1
        assert await session.scalar(text("PRAGMA foreign_keys")) == 1
    await database.disconnect()


async def test_migrating_does_not_silence_the_services_loggers(empty_url: str) -> None:
    database = AsyncDatabaseManager(empty_url)
    logger = logging.getLogger("src.api.app")

    await migrate(database)

    assert not logger.disabled
    assert logger.isEnabledFor(logging.WARNING)
    await database.disconnect()


def test_the_revisions_are_those_that_alembic_finds() -> None:
    scripts = ScriptDirectory.from_config(Config("alembic.ini"))

    assert head() == scripts.get_current_head()
    assert {script.revision: str(script.down_revision) for script in scripts.walk_revisions()} == _revisions()
