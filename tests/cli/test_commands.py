"""The command line, on real databases. Each group of commands has a file of its own."""

import asyncio
import json
import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from src.core.kinds import TokenPurpose
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.migrations import head, is_current
from src.db.models import SessionModel, UserModel, UserTokenModel
from tests.support.factories import DAY, make_session
from tests.support.processes import command, free_port, run, start


def test_without_a_command_it_lists_them() -> None:
    result = run()

    for name in ("serve", "migrate", "purge", "keys"):
        assert name in result.output


async def test_migrate_brings_a_database_to_this_version_however_often(empty_url: str) -> None:
    for _ in range(2):
        result = await asyncio.to_thread(run, "migrate", DATABASE_URL=empty_url)

        assert result.exit_code == 0, result.output
        assert f"at {head()}" in result.output
    database = AsyncDatabaseManager(empty_url)
    async with database.session() as session:
        assert await is_current(session)
    await database.disconnect()


def make_token(user: UserModel, token_hash: str, *, expires_in: timedelta) -> UserTokenModel:
    return UserTokenModel(
        user_id=user.id,
        purpose=TokenPurpose.PASSWORD_RESET,
        token_hash=token_hash,
        expires_at=utc_now() + expires_in,
    )


async def test_purge_deletes_what_has_ended_and_nothing_else(database: AsyncDatabaseManager, database_url: str) -> None:
    owner = UserModel(email="ana@example.com", hashed_password="x")
    abandoned, waiting = (
        UserModel(
            email="ben@example.com",
            hashed_password="x",
            is_active=False,
            activated_at=None,
            created_at=utc_now() - timedelta(days=days),
        )
        for days in (3, 1)
    )
    async with database.session() as session:
        session.add_all([owner, abandoned, waiting])
        await session.flush()
        live = [make_session(owner, expires_in=DAY), make_token(owner, "live", expires_in=DAY)]
        ended = make_session(owner, expires_in=-DAY)
        ended.last_used_at = utc_now() - 31 * DAY
        session.add_all([*live, ended, make_token(owner, "expired", expires_in=-DAY)])
        await session.commit()

    result = await asyncio.to_thread(run, "purge", DATABASE_URL=database_url)

    assert result.output == "Deleted 1 tokens, 1 sessions, 1 sign-ups, 0 emails, 0 events.\n"
    async with database.session() as session:
        assert set(await session.scalars(select(UserModel.id))) == {owner.id, waiting.id}
        assert list(await session.scalars(select(SessionModel.id))) == [live[0].id]
        assert list(await session.scalars(select(UserTokenModel.id))) == [live[1].id]


async def test_purge_counts_in_json_for_programs(database_url: str) -> None:
    result = await asyncio.to_thread(run, "purge", "--json", DATABASE_URL=database_url)

    assert json.loads(result.stdout) == {"tokens": 0, "sessions": 0, "sign_ups": 0, "mails": 0, "events": 0}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("migrate",), ("purge",), ("outbox", "list"), ("outbox", "retry")])
@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:////dev/null/users.db", "The database cannot be opened"),
        ("postgresql://nobody:secret@127.0.0.1:1/nothing", "The database cannot be opened"),
        ("postgresql://nobody:secret@secret@127.0.0.1:port/nothing", "DATABASE_URL cannot be read"),
        ("sqlite://", "DATABASE_URL names a database in memory"),
    ],
)
def test_a_database_that_is_not_ready_ends_a_command_with_one_sentence(
    arguments: tuple[str, ...], url: str, sentence: str
) -> None:
    result = run(*arguments, DATABASE_URL=url)

    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(sentence)
    assert "secret" not in result.stderr


@pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
async def test_a_command_migrates_a_server_only_where_the_service_would(empty_url: str) -> None:
    refused = await asyncio.to_thread(run, "purge", DATABASE_URL=empty_url)
    done = await asyncio.to_thread(run, "purge", DATABASE_URL=empty_url, DATABASE_AUTO_MIGRATE="true")

    assert refused.exit_code == 1
    assert "The database's tables are not those that this version needs" in refused.stderr
    assert done.stdout.startswith("Deleted 0 tokens")


def test_a_command_works_in_a_fresh_file(tmp_path: Path) -> None:
    result = run("purge", DATABASE_URL=f"sqlite:///{tmp_path}/new/users.db")

    assert result.stdout.startswith("Deleted 0 tokens")


@pytest.mark.slow
def test_serve_starts_the_service_on_the_port_it_is_told_and_stops_when_told(tmp_path: Path) -> None:
    port = free_port()
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "JWT_KEYS_DIR": f"{tmp_path}/keys"}

    with start(command("serve", "--port", str(port)), tmp_path / "log", environment, port=port) as running:
        running.wait_until_ready()
        running.send(signal.SIGTERM)

    assert sorted(path.suffix for path in (tmp_path / "keys").iterdir()) == [".key", ".pem", ".secret"]
    assert "Application shutdown complete" in running.log


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.slow
def test_serve_does_not_wait_for_who_sends_half_a_request(tmp_path: Path, workers: str) -> None:
    port = free_port()
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "JWT_KEYS_DIR": f"{tmp_path}/keys"}
    arguments = command("serve", "--port", str(port), "--workers", workers)
    with start(arguments, tmp_path / "log", environment, port=port) as running:
        running.wait_until_ready()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /auth/login HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            began_at = time.monotonic()

            running.send(signal.SIGTERM)

            assert time.monotonic() - began_at < 5


@pytest.mark.slow
def test_every_line_of_serve_is_json_where_it_is_asked_for(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/users.db",
        "JWT_KEYS_DIR": f"{tmp_path}/keys",
        "LOG_FORMAT": "json",
    }
    arguments = command("serve", "--port", str(port), "--workers", "2")
    with start(arguments, tmp_path / "log", environment, port=port) as running:
        running.wait_until_ready()
        running.send(signal.SIGTERM)

        messages = [json.loads(line)["message"] for line in running.log.splitlines()]

    assert sum("Application startup complete" in message for message in messages) == 2


def test_serve_tells_each_worker_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share the processors by it (AUTH_HASH_THREADS)."""
    told = []
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: told.append(os.environ.get("WEB_CONCURRENCY")))
    for before, arguments in (("", ["--workers", "3"]), ("2", ["--workers", "3"]), ("2", [])):
        monkeypatch.setenv("WEB_CONCURRENCY", before)  # so that what the command sets is undone

        run("serve", *arguments)

    assert told == ["3", "3", "2"]
