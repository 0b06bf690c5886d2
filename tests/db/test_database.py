import asyncio
import sqlite3
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError

from src.core.kinds import TokenPurpose
from src.db import AsyncDatabaseManager
from src.db.connections import Timeouts, normalize_url
from src.db.database import is_transient_database_error
from src.db.models import UserModel, UserTokenModel
from src.db.repositories import UserRepository
from src.db.unit_of_work import open_unit_of_work
from tests.support.databases import connected, writing


class TestUrls:
    @pytest.mark.parametrize(
        ("given", "used"),
        [
            ("sqlite:///users.db", "sqlite+aiosqlite:///users.db"),
            ("sqlite+aiosqlite:///users.db", "sqlite+aiosqlite:///users.db"),
            ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
            ("postgresql://u:p%40%25@h:5433/d", "postgresql+asyncpg://u:p%40%25@h:5433/d"),
            ("postgresql://u@/d?host=/run/postgresql", "postgresql+asyncpg://u@/d?host=%2Frun%2Fpostgresql"),
            ("postgresql://h/d?sslmode=verify-full", "postgresql+asyncpg://h/d?ssl=verify-full"),
        ],
    )
    def test_the_async_driver_is_filled_in(self, given: str, used: str) -> None:
        assert normalize_url(given).render_as_string(hide_password=False) == used

    def test_one_that_cannot_be_read_says_so_and_quotes_nothing(self) -> None:
        with pytest.raises(ValueError, match="percent-encode") as raised:
            normalize_url("postgresql://ana:pass@wo:rd@h/d")

        assert "wo" not in str(raised.value).replace("password", "")


class TestManager:
    async def test_it_connects_on_first_use_and_again_after_a_disconnect(self, database: AsyncDatabaseManager) -> None:
        for _ in range(2):
            async with database.session() as session:
                assert await session.scalar(text("SELECT 1")) == 1
            await database.disconnect()

    async def test_leaving_a_session_without_a_commit_discards(self, database: AsyncDatabaseManager) -> None:
        async with database.session() as session:
            await UserRepository(session).add(UserModel(email="ana@example.com", hashed_password="-"))

        async with database.session() as session:
            assert await UserRepository(session).count() == 0

    async def test_health_check_tells_whether_the_database_answers(self, database: AsyncDatabaseManager) -> None:
        assert await database.health_check()
        assert not await AsyncDatabaseManager("postgresql://nobody@127.0.0.1:1/nothing").health_check()

    async def test_connect_raises_what_callers_can_tell_apart(self) -> None:
        with pytest.raises(OperationalError):
            await AsyncDatabaseManager("postgresql://nobody@127.0.0.1:1/nothing").connect()

    async def test_its_own_tables_can_be_made_and_dropped(self, empty_url: str) -> None:
        database = AsyncDatabaseManager(empty_url)
        await database.create_tables()
        async with database.session() as session:
            assert await UserRepository(session).count() == 0

        await database.drop_tables()

        async with database.session() as session:
            with pytest.raises(DBAPIError):
                await UserRepository(session).count()
        await database.disconnect()

    async def test_an_error_does_not_show_parameters(self, database: AsyncDatabaseManager) -> None:
        async with database.session() as session:
            with pytest.raises(DBAPIError) as raised:
                await session.execute(text("SELECT * FROM nowhere WHERE a = :a"), {"a": "canary"})

        assert "canary" not in str(raised.value)


class TestSQLite:
    async def test_its_folder_is_made(self, tmp_path: Path) -> None:
        database = AsyncDatabaseManager(f"sqlite:///{tmp_path}/a/b/users.db")

        await database.connect()

        assert (tmp_path / "a/b/users.db").exists()
        await database.disconnect()

    @pytest.mark.parametrize(
        ("pragma", "value"), [("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 5_000)]
    )
    async def test_a_file_is_opened_as_a_server_would(self, tmp_path: Path, pragma: str, value: object) -> None:
        engine = AsyncDatabaseManager(f"sqlite:///{tmp_path}/users.db").engine

        async with engine.connect() as connection:
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one() == value
        await engine.dispose()

    async def test_a_writer_waits_for_another(self, tmp_path: Path) -> None:
        database = AsyncDatabaseManager(f"sqlite:///{tmp_path}/users.db")
        await database.create_tables()

        async def add(number: int) -> None:
            async with database.session() as session:
                await session.begin_transaction()
                users = UserRepository(session)
                count = await users.count()
                await users.add(UserModel(email=f"u{number}-{count}@example.com", hashed_password="-"))
                await session.commit()

        await asyncio.gather(*(add(number) for number in range(30)))

        async with database.session() as session:
            assert {user.email.partition("-")[2] for user in await UserRepository(session).list()} == {
                f"{count}@example.com" for count in range(30)
            }
        await database.disconnect()

    async def test_readers_are_answered_while_many_writers_wait(self, tmp_path: Path) -> None:
        database = AsyncDatabaseManager(f"sqlite:///{tmp_path}/users.db")
        await database.create_tables()
        other = sqlite3.connect(tmp_path / "users.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        async def write() -> None:
            async with database.session() as session:
                await session.begin_transaction()

        writers = [asyncio.create_task(write()) for _ in range(30)]
        async with asyncio.timeout(5), database.session() as session:
            assert await UserRepository(session).count() == 0

        other.execute("ROLLBACK")
        other.close()
        await asyncio.gather(*writers)
        await database.disconnect()

    async def test_in_memory_sessions_share_a_transaction_that_is_open(self) -> None:
        database = AsyncDatabaseManager("sqlite+aiosqlite:///:memory:")
        await database.create_tables()

        async with database.session() as one, database.session() as other:
            await UserRepository(one).add(UserModel(email="ana@example.com", hashed_password="-"))
            await other.begin_transaction()
            assert await UserRepository(other).count() == 1
        await database.disconnect()


async def test_deleting_a_user_deletes_their_tokens(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        users = UserRepository(session)
        user = await users.add(UserModel(email="ana@example.com", hashed_password="-"))
        expires_at = datetime.now(UTC)
        session.add(
            UserTokenModel(user_id=user.id, purpose=TokenPurpose.ACTIVATION, token_hash="-", expires_at=expires_at)
        )
        await session.flush()

        await users.delete(user)

        assert await session.scalar(text("SELECT count(*) FROM user_tokens")) == 0


async def test_a_token_needs_its_user(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        session.add(UserTokenModel(user_id=uuid4(), purpose="-", token_hash="-", expires_at=datetime.now(UTC)))
        with pytest.raises(IntegrityError):
            await session.flush()


class TestTimes:
    async def test_any_zone_comes_back_as_the_same_moment_in_utc(self, database: AsyncDatabaseManager) -> None:
        moment = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=-3)))
        async with database.session() as session:
            user = await UserRepository(session).add(
                UserModel(email="ana@example.com", hashed_password="-", last_login_at=moment)
            )
            await session.commit()

        async with database.session() as session:
            loaded = (await UserRepository(session).get_by_id(user.id)).last_login_at

        assert loaded == moment
        assert loaded is not None
        assert loaded.utcoffset() == timedelta(0)

    async def test_a_naive_time_is_refused(self, database: AsyncDatabaseManager) -> None:
        naive = datetime(2026, 3, 1)  # noqa: DTZ001 - what is refused
        async with database.session() as session:
            session.add(UserModel(email="ana@example.com", hashed_password="-", last_login_at=naive))
            with pytest.raises(StatementError, match="must be aware"):
                await session.flush()


async def test_ids_sort_by_age(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        users = UserRepository(session)
        ids = [(await users.add(UserModel(email=f"u{n}@example.com", hashed_password="-"))).id for n in range(5)]

    assert ids == sorted(ids)
    assert {id_.version for id_ in ids} == {7}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: mode(path) for path in folder.rglob("*") if path.is_file()}


class TestFilesOfSQLite:
    @pytest.mark.parametrize(
        "name",
        ["users.db", "new/users.db", "file:{folder}/users.db?uri=true", "file:{folder}/users.db?mode=rwc&uri=true"],
    )
    async def test_nobody_else_may_open_the_file_nor_those_beside_it(self, tmp_path: Path, name: str) -> None:
        is_uri = name.startswith("file:")
        url = f"sqlite:///{name.format(folder=tmp_path) if is_uri else tmp_path / name}"
        async with connected(url) as database, database.session() as session:
            await session.execute(text("CREATE TABLE t (id INTEGER)"))
            await session.commit()

            assert modes_in(tmp_path) == {"users.db": 0o600, "users.db-wal": 0o600, "users.db-shm": 0o600}

    async def test_a_link_to_a_file_that_is_not_there_yet_makes_it_so_too(self, tmp_path: Path) -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "target.db")
        async with connected(f"sqlite:///{tmp_path}/link.db") as database:
            await database.connect()

        assert mode(tmp_path / "target.db") == 0o600

    async def test_the_mode_of_a_file_that_is_there_is_left_to_its_owner(self, tmp_path: Path) -> None:
        path = tmp_path / "users.db"
        path.touch(0o640)
        async with connected(f"sqlite:///{path}") as database:
            await database.connect()

        assert mode(path) == 0o640

    @pytest.mark.parametrize("how", ["ro", "rw", "memory"])
    async def test_no_file_is_made_where_the_url_asks_for_none(self, tmp_path: Path, how: str) -> None:
        async with connected(f"sqlite:///file:{tmp_path}/users.db?mode={how}&uri=true") as database:
            with suppress(OperationalError):
                await database.connect()

        assert modes_in(tmp_path) == {}


class TestAFileThatIsMoved:
    async def test_nothing_is_read_or_written_until_it_is_back(self, tmp_path: Path) -> None:
        file, elsewhere = tmp_path / "users.db", tmp_path / "elsewhere.db"
        async with connected(f"sqlite:///{file}") as database:
            await database.create_tables()
            file.rename(elsewhere)

            for work in (read_alone, read_in_a_transaction, write):
                with pytest.raises(OperationalError):
                    await work(database)
            assert not file.exists()

            elsewhere.rename(file)
            for work in (read_alone, read_in_a_transaction, write):
                await work(database)

    async def test_another_in_its_place_is_not_touched(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file, other = tmp_path / "users.db", tmp_path / "other.db"
        async with connected(f"sqlite:///{other}") as database:
            await database.create_tables()
            await write(database)
        async with connected(f"sqlite:///{file}") as database:
            await database.create_tables()
            other.replace(file)

            for work in (read_alone, write, write):
                with pytest.raises(OperationalError):
                    await work(database)
            assert [record.message for record in caplog.records] == [
                f"{file} is gone, or another file is there: put it back, or restart the service"
            ]


async def read_alone(database: AsyncDatabaseManager) -> None:
    async with open_unit_of_work(database) as uow:
        await uow.users.count()


async def read_in_a_transaction(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        await UserRepository(session).count()


async def write(database: AsyncDatabaseManager) -> None:
    async with writing(database) as session:
        await UserRepository(session).add(UserModel(email=f"{uuid4()}@example.com", hashed_password="-"))


class TestLimitsOfTime:
    async def test_a_statement_of_sqlite_is_interrupted(self, tmp_path: Path) -> None:
        endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
        database = AsyncDatabaseManager(f"sqlite:///{tmp_path}/users.db", timeouts=Timeouts(statement=0.1))
        async with asyncio.timeout(5), database.session() as session:
            session.is_autocommit = True
            with pytest.raises(OperationalError) as raised:
                await session.execute(endless)
        await database.disconnect()

        assert is_transient_database_error(raised.value)

    async def test_a_writer_gives_up_its_place_after_a_while(self, tmp_path: Path) -> None:
        async with connected(f"sqlite:///{tmp_path}/users.db", timeouts=Timeouts(lock=0.1)) as database:
            await database.create_tables()
            async with writing(database):
                with pytest.raises(TimeoutError):
                    await write(database)

            await write(database)

    async def test_a_writer_behind_too_many_others_is_refused_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("src.db.database.MOST_WAITING_WRITERS", 3)
        async with connected(f"sqlite:///{tmp_path}/users.db") as database:
            await database.create_tables()
            async with writing(database):
                waiting = [asyncio.create_task(write(database)) for _ in range(3)]
                await asyncio.sleep(0)
                with pytest.raises(TimeoutError, match="too many writers"):
                    await write(database)

            await asyncio.gather(*waiting)
            await write(database)
