"""`python -m src backup`, and that what it makes can be restored."""

import asyncio
import json
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.processes import run, run_command, run_service
from tests.support.second_factor import code_of
from tests.support.steps import PASSWORD, bearer, token_of


def settings_in(folder: Path) -> dict[str, str]:
    return {"DATABASE_URL": f"sqlite:///{folder}/users.db", "JWT_KEYS_DIR": f"{folder}/keys"}


@pytest.fixture
def prepared(tmp_path: Path) -> dict[str, str]:
    """A database and keys."""
    settings = settings_in(tmp_path / "data")
    assert run("keys", "rotate", **settings).exit_code == 0
    assert run("migrate", **settings).exit_code == 0
    return settings


def test_nobody_else_may_read_it(prepared: dict[str, str], tmp_path: Path) -> None:
    result = run("backup", str(tmp_path / "backups"), "--json", **prepared)

    folder = Path(json.loads(result.stdout)["folder"])
    assert {path.name for path in folder.iterdir()} == {"users.db", "keys"}
    assert len(list((folder / "keys").iterdir())) == 3
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_one_that_fails_has_not_the_name_of_one_that_is_done(prepared: dict[str, str], tmp_path: Path) -> None:
    database = tmp_path / "data/users.db"
    database.write_bytes(b"nonsense" * 1_000)
    for beside in database.parent.glob("users.db-*"):
        beside.unlink()

    result = run("backup", str(tmp_path / "backups"), **prepared)

    assert result.exit_code == 1
    assert "The backup has failed" in result.stderr
    assert [path.suffix for path in (tmp_path / "backups").iterdir()] == [".unfinished"]


def test_where_there_is_no_database_none_is_made(tmp_path: Path) -> None:
    result = run("backup", str(tmp_path / "backups"), **settings_in(tmp_path))

    assert result.exit_code == 1
    assert "There is no database to back up" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_of_postgresql_it_prints_how_to_dump_it_without_the_password(prepared: dict[str, str], tmp_path: Path) -> None:
    url = "postgresql://ana:canary@db.example.com:5433/users?sslmode=require"

    result = run("backup", str(tmp_path / "backups"), **prepared | {"DATABASE_URL": url})

    assert 'users.dump" "postgresql://ana@db.example.com:5433/users?sslmode=require"' in result.stdout
    assert "canary" not in result.output


@pytest.mark.slow
async def test_what_was_acknowledged_before_a_backup_is_there_after_its_restoration(tmp_path: Path) -> None:
    data, settings = tmp_path / "data", settings_in(tmp_path / "data")
    settings |= {"AUTH_BCRYPT_ROUNDS": "4", "SERVER_PUBLIC_URL": "http://localhost:8000"}  # whatever the port
    account = {"email": "ana@example.com", "password": PASSWORD}
    with run_service(tmp_path, **settings, RATE_LIMIT_ENABLED="false") as service:
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url) as client:
            link = (await client.post("/auth/signup", json=account)).json()["activation_url"]
            await client.post("/auth/activate", json={"token": token_of(link)})
            tokens = (await client.post("/auth/login", json=account)).json()
            headers = bearer(tokens["access_token"])
            factor = await client.post("/auth/second-factor", json={"current_password": PASSWORD}, headers=headers)
            secret = factor.json()["secret"]
            await client.post("/auth/second-factor/confirm", json={"code": code_of(secret)}, headers=headers)
            acknowledged: list[str] = []
            writing = [asyncio.create_task(sign_up_for_ever(client, number, acknowledged)) for number in range(4)]
            while len(acknowledged) < 20:
                await asyncio.sleep(0.01)
            before = list(acknowledged)
            output = await asyncio.to_thread(run_command, "backup", str(tmp_path / "backups"), "--json", **settings)
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
    restore(Path(json.loads(output)["folder"]), data)

    with run_service(tmp_path, **settings) as service:
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url) as client:
            assert (await client.get("/auth/me", headers=headers)).status_code == 200
            refreshed = await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
            assert refreshed.status_code == 200
            waiting = (await client.post("/auth/login", json=account)).json()["details"]["second_factor_token"]
            body = {"second_factor_token": waiting, "code": code_of(secret, 1)}
            assert (await client.post("/auth/login/second-factor", json=body)).status_code == 200
    with closing(sqlite3.connect(data / "users.db")) as database:
        stored = {email for (email,) in database.execute("SELECT email FROM users")}
    assert set(before) <= stored


async def sign_up_for_ever(client: httpx.AsyncClient, number: int, acknowledged: list[str]) -> None:
    while True:
        email = f"u{number}-{len(acknowledged)}@example.com"
        response = await client.post("/auth/signup", json={"email": email, "password": PASSWORD})
        assert response.status_code == 201
        acknowledged.append(email)


def restore(backup: Path, data: Path) -> None:
    """As docs/run/backup.md says."""
    for file in [*data.glob("users.db*"), *(data / "keys").iterdir()]:
        file.unlink()
    (backup / "users.db").rename(data / "users.db")
    for key in (backup / "keys").iterdir():
        key.rename(data / "keys" / key.name)
