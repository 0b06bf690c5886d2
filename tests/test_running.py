"""The service as people run it: real processes, real sockets."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from src.core.keys import rotate
from tests.support.processes import run_service, wait_until
from tests.support.second_factor import code_of
from tests.support.steps import PASSWORD, bearer, token_of


@pytest.mark.slow
def test_it_starts_on_nothing_and_stops_when_told(tmp_path: Path) -> None:
    with run_service(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/new/users.db") as service:
        service.wait_until_ready()
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(5)

        assert "SMTP is not configured" in service.log
        assert "Application shutdown complete" in service.log
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_two_workers_start_together_on_an_empty_database(empty_url: str, tmp_path: Path) -> None:
    environment = {"DATABASE_URL": empty_url, "DATABASE_AUTO_MIGRATE": "true"}
    with run_service(tmp_path, "--workers", "2", **environment) as service:
        service.wait_until_ready()
        while service.log.count("Application startup complete") < 2:
            assert "Traceback" not in service.log
            time.sleep(0.05)

        assert service.log.count("Running upgrade  ->") == 1


@pytest.mark.slow
async def test_fifty_clicks_on_one_link_reach_two_workers(database_url: str, tmp_path: Path) -> None:
    with run_service(tmp_path, "--workers", "2", DATABASE_URL=database_url) as service:
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url) as client:
            body = {"email": "ana@example.com", "password": PASSWORD}
            token = token_of((await client.post("/auth/signup", json=body)).json()["activation_url"])

            responses = await asyncio.gather(*(client.post("/auth/activate", json={"token": token}) for _ in range(50)))

    outcomes = Counter((response.status_code, response.json().get("code")) for response in responses)
    assert outcomes == {(200, None): 1, (400, "INVALID_TOKEN"): 49}


@pytest.mark.slow
async def test_one_code_gets_one_of_two_workers_logged_in(database_url: str, tmp_path: Path) -> None:
    settings = {"DATABASE_URL": database_url, "JWT_KEYS_DIR": str(tmp_path / "keys"), "AUTH_BCRYPT_ROUNDS": "4"}
    account = {"email": "ana@example.com", "password": PASSWORD}
    with run_service(tmp_path, "--workers", "2", **settings) as service:
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url) as client:
            link = token_of((await client.post("/auth/signup", json=account)).json()["activation_url"])
            await client.post("/auth/activate", json={"token": link})
            bearer = {
                "Authorization": f"Bearer {(await client.post('/auth/login', json=account)).json()['access_token']}"
            }
            body = {"current_password": PASSWORD}
            secret = (await client.post("/auth/second-factor", json=body, headers=bearer)).json()["secret"]
            body = {"code": code_of(secret)}
            await client.post("/auth/second-factor/confirm", json=body, headers=bearer)
            waiting = [(await client.post("/auth/login", json=account)).json()["details"] for _ in range(8)]

            code = code_of(secret, 1)
            bodies = [{"second_factor_token": each["second_factor_token"], "code": code} for each in waiting]
            responses = await asyncio.gather(*(client.post("/auth/login/second-factor", json=body) for body in bodies))

    assert sorted(response.status_code for response in responses) == [200] + [401] * 7


@pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
@pytest.mark.slow
def test_a_database_that_is_behind_stops_the_start_with_one_clear_sentence(empty_url: str, tmp_path: Path) -> None:
    with run_service(tmp_path, DATABASE_URL=empty_url) as service:
        assert service.process.wait(20) != 0

        assert "run `python -m src migrate`" in service.log
        assert "Traceback" not in service.log


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////proc/users.db",
        "sqlite:///LICENSE",
        "sqlite:////dev/null/users.db",
        "postgresql://nobody@127.0.0.1:1/nothing",
    ],
)
@pytest.mark.slow
def test_a_database_that_cannot_be_opened_stops_the_start_with_one_clear_sentence(url: str, tmp_path: Path) -> None:
    with run_service(tmp_path, DATABASE_URL=url) as service:
        assert service.process.wait(20) != 0

        assert "The database cannot be opened" in service.log
        assert "Check DATABASE_URL" in service.log
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_a_request_that_is_cut_off_by_the_stop_gets_the_envelope(tmp_path: Path) -> None:
    with run_service(
        tmp_path,
        "--timeout-graceful-shutdown",
        "1",
        DATABASE_URL=f"sqlite:///{tmp_path}/users.db",
        AUTH_BCRYPT_ROUNDS="16",
    ) as service:
        service.wait_until_ready()
        with ThreadPoolExecutor() as threads:
            body = {"email": "ana@example.com", "password": PASSWORD}
            sign_up = threads.submit(httpx.post, f"{service.url}/auth/signup", json=body, timeout=30)
            time.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)

        assert sign_up.result().status_code == 503
        assert sign_up.result().json()["code"] == "SERVICE_UNAVAILABLE"
        service.process.wait(30)
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_a_database_in_memory_is_refused(tmp_path: Path) -> None:
    with run_service(tmp_path, DATABASE_URL="sqlite+aiosqlite:///:memory:") as service:
        assert service.process.wait(20) != 0

        assert "is for tests: name a file" in service.log
        assert "Traceback" not in service.log


@pytest.fixture
def production(tmp_path: Path) -> dict[str, str]:
    """A production that starts."""
    rotate(tmp_path / "keys", "ES256")
    return {
        "APP_ENV": "production",
        "AUTH_BCRYPT_ROUNDS": "10",
        "SERVER_PUBLIC_URL": "https://accounts.example.com",
        "DATABASE_URL": f"sqlite:///{tmp_path}/users.db",
        "JWT_KEYS_DIR": f"{tmp_path}/keys",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_FROM": "accounts@example.com",
    }


@pytest.mark.slow
def test_production_starts_where_nothing_is_unsafe(production: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):
        with run_service(tmp_path, **production) as service:
            service.wait_until_ready()


@pytest.mark.slow
def test_production_without_smtp_stops_the_start_with_one_clear_sentence(
    production: dict[str, str], tmp_path: Path
) -> None:
    assert_refused(tmp_path, production | {"SMTP_HOST": ""}, "SMTP is not configured, so links would be handed")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["users.db", "users.db-wal", "keys/*.pem", "keys/*.secret", "keys/*.key"])
def test_production_refuses_a_file_of_secrets_that_everyone_may_open(
    production: dict[str, str], tmp_path: Path, name: str
) -> None:
    for suffix in ("", "-wal"):
        (tmp_path / f"users.db{suffix}").touch(0o600)
    [path] = tmp_path.glob(name)
    path.chmod(0o604)

    assert_refused(tmp_path, production, f"Everyone on this machine may open {path}: chmod 600 {path}.")


@pytest.mark.slow
def test_production_without_an_encryption_key_stops_the_start_and_names_it(
    production: dict[str, str], tmp_path: Path
) -> None:
    [path] = tmp_path.glob("keys/*.key")
    path.unlink()

    assert_refused(tmp_path, production, f"There is no encryption key (*.key) in {tmp_path}/keys (JWT_KEYS_DIR)")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pem", ".secret", ".key"])
def test_production_refuses_a_key_that_was_generated(production: dict[str, str], tmp_path: Path, suffix: str) -> None:
    [path] = tmp_path.glob(f"keys/*{suffix}")
    generated = path.rename(path.with_name(f"development{suffix}"))

    assert_refused(tmp_path, production, f"{generated} was made up for development")


@pytest.mark.slow
def test_production_looks_at_the_file_behind_a_link_as_kubernetes_mounts_it(
    production: dict[str, str], tmp_path: Path
) -> None:
    [path] = (tmp_path / "keys").glob("*.pem")
    target = path.rename(tmp_path / "mounted")
    target.chmod(0o644)
    path.symlink_to(target)

    assert_refused(tmp_path, production, f"may open {path}: chmod 600 {target}, or defaultMode: 0400 for a secret of")


def assert_refused(folder: Path, environment: dict[str, str], sentence: str) -> None:
    with run_service(folder, **environment) as service:
        assert service.process.wait(20) != 0

        assert sentence in service.log
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_a_setting_that_does_not_work_stops_the_start_with_a_line_that_names_it(tmp_path: Path) -> None:
    with run_service(tmp_path, AUTH_PASSWORD_MIN_LENGTH="two") as service:
        assert service.process.wait(20) != 0

        assert "  AUTH_PASSWORD_MIN_LENGTH: " in service.log
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_a_migration_that_fails_stops_the_start_under_its_traceback(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "users.db")) as other:
        other.execute("CREATE TABLE users (id INTEGER)")  # of somebody else

    with run_service(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/users.db") as service:
        assert service.process.wait(20) != 0

        assert "OperationalError" in service.log
        assert "Application startup complete" not in service.log


@pytest.mark.slow
def test_production_logs_json_from_the_first_line_to_the_last(production: dict[str, str], tmp_path: Path) -> None:
    with run_service(tmp_path, **production) as service:
        service.wait_until_ready()
        httpx.get(f"{service.url}/health/live", headers={"X-Request-ID": "the-id"})
        service.send(signal.SIGTERM)

        lines = [json.loads(line) for line in service.log.splitlines()]

    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert "Started server process" in lines[0]["message"]
    assert [line["route"] for line in lines if line.get("request_id") == "the-id"] == ["/health/live"]


@pytest.mark.slow
def test_clients_that_pipeline_and_leave_are_no_errors(tmp_path: Path) -> None:
    get = b"GET /health/ready HTTP/1.1\r\nHost: test\r\n\r\n"
    with run_service(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/users.db") as service:
        service.wait_until_ready()
        for pause in (0, 0.005, 0.02) * 20:
            with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as client:
                client.sendall(get * 20)
                time.sleep(pause)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave by a reset
        service.send(signal.SIGTERM)

        assert "GET /health/ready 200" in service.log
        assert "ERROR" not in service.log


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.slow
def test_the_log_holds_no_password_token_link_or_hash(database_url: str, tmp_path: Path, log_format: str) -> None:
    settings = {
        "DATABASE_URL": database_url,
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": log_format,
        "METRICS_TOKEN": "canary-of-prometheus",
    }
    with run_service(tmp_path, "--log-level", "trace", **settings) as service:
        service.wait_until_ready()
        with httpx.Client(base_url=service.url) as client:
            body = {"email": "ana@example.com", "password": "canary-of-a-password"}
            link = client.post("/auth/signup", json=body).json()["activation_url"]
            token = token_of(link)
            client.post(f"/auth/signup?token={token}", json=body | {"name": "\x00"})
            for method in ("GET", "HEAD", "DELETE"):
                client.request(method, f"/activate?token={token}")
            client.post("/activate", data={"token": token})
            client.post("/auth/activate", json={"token": token})
            tokens = client.post("/auth/login", json=body).json()
            client.get("/auth/me", headers=bearer(tokens["access_token"]))
            client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
            client.post("/auth/login", json=body | {"password": "another canary-of-a-password"})
            metrics = client.get("/metrics", headers=bearer("canary-of-prometheus")).text

        assert "GET /activate 200" in service.log
        assert 'auth_events_total{kind="log_in",outcome="failure"' in metrics
        secrets = (token, tokens["access_token"], tokens["refresh_token"])
        for secret in (*secrets, "canary-of", "token=", "bcrypt", "ana@"):
            assert secret not in service.log + metrics


@pytest.mark.slow
async def test_three_workers_are_one_service(empty_url: str, tmp_path: Path) -> None:
    """One migration, one set of keys, one count of guesses; and each has its share of the processors."""
    settings = {
        "DATABASE_URL": empty_url,
        "DATABASE_AUTO_MIGRATE": "true",
        "JWT_KEYS_DIR": str(tmp_path / "keys"),
        "AUTH_BCRYPT_ROUNDS": "4",
        "RATE_LIMIT_FAILURES_PER_ACCOUNT_AND_ORIGIN": "10/15m",
    }
    account = {"email": "ana@example.com", "password": PASSWORD}
    with run_service(tmp_path, "--workers", "3", **settings) as service:
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url, headers={"Connection": "close"}) as client:
            link = token_of((await client.post("/auth/signup", json=account)).json()["activation_url"])
            await client.post("/auth/activate", json={"token": link})
            tokens = (await client.post("/auth/login", json=account)).json()
            headers = bearer(tokens["access_token"])
            seen = {(await client.get("/auth/me", headers=headers)).status_code for _ in range(12)}
            wrong = account | {"password": "a-wrong-passphrase"}
            guesses = await asyncio.gather(*(client.post("/auth/login", json=wrong) for _ in range(30)))

        assert service.log.count("Running upgrade  ->") == 1
    assert seen == {200}
    assert Counter(guess.status_code for guess in guesses) == {401: 10, 429: 20}
    assert len(list((tmp_path / "keys").iterdir())) == 3


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with run_service(tmp_path, "--workers", "2", DATABASE_URL=f"sqlite:///{tmp_path}/users.db") as service:
        service.wait_until_ready()
        workers = re.findall(r"Started server process \[(\d+)\]", service.log)
        os.kill(int(workers[0]), signal.SIGKILL)

        wait_until(lambda: service.log.count("Application startup complete") == 3)

        assert httpx.get(f"{service.url}/health/ready").status_code == 200
