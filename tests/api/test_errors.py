"""Every error, of every kind, is `{detail, code, details}` and repeats nothing that was sent."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import Connection, make_url, text

from src.api.app import create_app
from src.api.dependencies import SessionDep
from src.core.exceptions import AppException, TooManyRequestsException, UnauthorizedException
from src.core.logs import RareWarning, TextFormatter
from src.db import AsyncDatabaseManager
from tests.support.databases import listening
from tests.support.service import Service, make_settings, use_database

CANARY = "canary-7c1f-secret"


def assert_envelope(response: Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"detail", "code", "details"}
    assert body["code"] == code
    assert body["detail"].endswith(".")
    assert CANARY not in response.text


@pytest.fixture
async def client(service: Service) -> AsyncClient:
    return service.client


async def test_an_unknown_route(client: AsyncClient) -> None:
    assert_envelope(await client.get(f"/{CANARY}"), 404, "NOT_FOUND")


async def test_a_wrong_method_names_the_right_ones(client: AsyncClient) -> None:
    response = await client.delete("/auth/signup")

    assert_envelope(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "POST"
    assert (await client.put("/activate")).headers["allow"] == "GET, HEAD, POST"
    assert (await client.put("/auth/sessions")).headers["allow"] == "GET, HEAD, DELETE"


@pytest.mark.parametrize("path", ["/health/live", "/", "/docs", "/api/users/00000000-0000-0000-0000-000000000000"])
async def test_head_is_get_without_a_body(client: AsyncClient, path: str) -> None:
    get, head = await client.get(path), await client.head(path)

    assert head.status_code == get.status_code
    assert head.headers.keys() == get.headers.keys()
    assert head.content == b""


async def test_a_trailing_slash_is_another_path_and_no_redirect_to_whatever_host_was_named(
    client: AsyncClient,
) -> None:
    response = await client.post("/auth/signup/", json={}, headers={"Host": "evil.example.com"})

    assert_envelope(response, 404, "NOT_FOUND")
    assert "location" not in response.headers


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/auth/signup", "password"),
        ("/auth/login", "password"),
        ("/auth/activate", "token"),
        ("/auth/refresh", "refresh_token"),
    ],
)
async def test_half_a_surrogate_pair_is_a_422(client: AsyncClient, path: str, field: str) -> None:
    body = f'{{"email": "ana@example.com", "{field}": "strong-pass-12-chars\\ud800"}}'

    response = await client.post(path, content=body, headers={"Content-Type": "application/json"})

    assert_envelope(response, 422, "VALIDATION_ERROR")
    reasons = {each["field"]: each["reason"] for each in response.json()["details"]["fields"]}
    assert reasons[field] == "contains characters that UTF-8 cannot encode"


@pytest.mark.parametrize("body", [f'{{"password": "{CANARY}', "{", "", "[]", "null", '"text"', f'["{CANARY}"]'])
async def test_a_body_that_is_not_the_json_that_is_asked_for(client: AsyncClient, body: str) -> None:
    response = await client.post("/auth/signup", content=body, headers={"Content-Type": "application/json"})

    assert_envelope(response, 422, "VALIDATION_ERROR")
    assert response.json()["details"]["fields"][0]["reason"]


@pytest.mark.parametrize("body", [b'{"email": "\xff"}', b"[" * 30_000, b'{"email": ' + b"9" * 5000 + b"}"])
async def test_a_body_that_cannot_be_read(client: AsyncClient, body: bytes) -> None:
    response = await client.post("/auth/signup", content=body, headers={"Content-Type": "application/json"})

    assert_envelope(response, 400, "BAD_REQUEST")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_wrong_content_type_says_which_is_right(client: AsyncClient, content_type: str) -> None:
    response = await client.post(
        "/auth/signup",
        content=json.dumps({"email": "ana@example.com", "password": CANARY}),
        headers={"Content-Type": content_type},
    )

    assert_envelope(response, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert "application/json" in response.json()["detail"]


async def in_chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


@pytest.mark.parametrize("send", [bytes, in_chunks])
async def test_a_body_that_is_too_large(client: AsyncClient, send: Callable[[bytes], Any]) -> None:
    body = send(b'{"email": "' + b"a" * 70_000)

    response = await client.post("/auth/signup", content=body, headers={"Content-Type": "application/json"})

    assert_envelope(response, 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    "body",
    [
        {"email": CANARY, "password": CANARY},
        {"email": "ana@example.com", "password": [CANARY]},
        {"email": "ana@example.com", "password": CANARY, "name": {"x": CANARY}},
        {"email": f"ana@{CANARY}_.com", "password": "short"},
        {"email": "ana@example.com", "password": CANARY, f"{CANARY} as a key": CANARY},
        {"email": "ana@example.com", "password": CANARY, "name": f"\x1b{CANARY}"},
    ],
)
async def test_a_422_names_fields_and_reasons_and_never_repeats_the_input(
    client: AsyncClient, body: dict[str, object]
) -> None:
    response = await client.post("/auth/signup", json=body)

    assert_envelope(response, 422, "VALIDATION_ERROR")
    for field in response.json()["details"]["fields"]:
        assert field.keys() == {"field", "reason"}


class TestRequestId:
    async def test_every_answer_has_one(self, client: AsyncClient) -> None:
        first, second = [(await client.get("/health/live")).headers["x-request-id"] for _ in range(2)]

        assert first != second

    async def test_the_callers_is_kept(self, client: AsyncClient) -> None:
        response = await client.get("/health/live", headers={"X-Request-ID": "trace-1.a_B"})

        assert response.headers["x-request-id"] == "trace-1.a_B"

    @pytest.mark.parametrize("forged", ["a b", "x" * 65, "café", "a\tb", ""])
    async def test_one_that_could_forge_a_line_of_the_log_is_not(self, client: AsyncClient, forged: str) -> None:
        response = await client.get("/health/live", headers={b"X-Request-ID": forged.encode()})

        assert response.headers["x-request-id"] != forged


def failing_app(database: AsyncDatabaseManager) -> FastAPI:
    app = create_app(make_settings())
    use_database(app, database)

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError(f"what happened\n{CANARY}") from ValueError(f"why\n{CANARY}")

    @app.get("/wrong-type")
    async def wrong_type(session: SessionDep) -> None:
        await session.execute(text("SELECT length(:hash) + nonsense"), {"hash": {CANARY: CANARY}.keys()})

    @app.get("/misspelt")
    async def misspelt(session: SessionDep) -> None:
        await session.execute(text("SELECT nmae FROM users"))

    @app.get("/insert")
    async def insert(session: SessionDep) -> None:
        statement = "INSERT INTO users (id, email, hashed_password) VALUES (:id, NULL, :hash)"
        await session.execute(text(statement), {"id": "0" * 32, "hash": CANARY})

    @app.get("/limited")
    async def limited() -> None:
        raise TooManyRequestsException(details={"limit": 5})

    @app.get("/private")
    async def private() -> None:
        raise UnauthorizedException

    return app


async def get(database: AsyncDatabaseManager, path: str) -> Response:
    transport = ASGITransport(app=failing_app(database))
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path)


@pytest.mark.parametrize("path", ["/fail", "/insert", "/wrong-type", "/misspelt"])
async def test_an_unforeseen_error_is_a_500_that_shares_its_request_id_with_the_log(
    database: AsyncDatabaseManager, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.handler.setFormatter(TextFormatter())

    response = await get(database, path)

    assert_envelope(response, 500, "INTERNAL_ERROR")
    request_id = response.json()["details"]["request_id"]
    assert request_id == response.headers["x-request-id"]
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert f"ERROR   {request_id} src.api.middleware: The request failed" in caplog.text
    assert Path(__file__).name in record.getMessage()
    assert CANARY not in caplog.text


async def test_a_refusal_keeps_its_details_and_headers(database: AsyncDatabaseManager) -> None:
    response = await get(database, "/limited")
    assert_envelope(response, 429, "TOO_MANY_REQUESTS")
    assert response.json()["details"] == {"limit": 5}

    response = await get(database, "/private")
    assert_envelope(response, 401, "UNAUTHORIZED")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody@127.0.0.1:1/nothing",
        "postgresql://nobody@/x?host=/nonexistent",
        "sqlite:////proc/none/x.db",
    ],
)
async def test_a_database_that_is_away_is_a_503_and_one_line_of_the_log(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.api.errors._database_warning", RareWarning(logging.getLogger("src.api.errors")))
    database = AsyncDatabaseManager(url)

    for _ in range(2):
        response = await get(database, "/api/users/00000000-0000-0000-0000-000000000000")

        assert_envelope(response, 503, "SERVICE_UNAVAILABLE")
        assert response.headers["retry-after"]
    assert caplog.text.count("The database did not answer") == 1
    await database.disconnect()


async def sign_up(client: AsyncClient, email: str = "ana@example.com") -> Response:
    return await client.post("/auth/signup", json={"email": email, "password": "strong-pass-12-chars"})


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestPostgreSQLInTrouble:
    async def test_connections_that_were_cut_while_idle_are_noticed_before_they_are_used(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await asyncio.gather(*(sign_up(service.client, f"u{number}@example.com") for number in range(5)))
        async with database.session() as session:
            await session.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )

        assert (await sign_up(service.client)).status_code == 201

    async def test_a_standby_that_cannot_write_is_a_503(self, service: Service) -> None:
        def forbid_writing(connection: Connection) -> None:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")

        with listening(service.database, "begin", forbid_writing):
            response = await sign_up(service.client)

        assert_envelope(response, 503, "SERVICE_UNAVAILABLE")

    async def test_a_database_that_is_not_there_is_a_503(self, database_url: str) -> None:
        away = AsyncDatabaseManager(make_url(database_url).set(database="nowhere"))

        assert_envelope(await get(away, "/health/ready"), 503, "SERVICE_UNAVAILABLE")
        await away.disconnect()


async def test_a_place_that_is_no_address_is_not_kept(service: Service, database: AsyncDatabaseManager) -> None:
    transport = ASGITransport(app=service.app, client=("<b>" + "a" * 60, 1))
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await sign_up(client)).status_code == 201

    async with database.session() as session:
        assert await session.scalar(text("SELECT signed_up_from FROM users")) is None


def test_every_exception_has_a_code_and_a_sentence_of_its_own() -> None:
    def family(root: type[AppException]) -> list[type[AppException]]:
        return [root, *(leaf for child in root.__subclasses__() for leaf in family(child))]

    exceptions = family(AppException)

    assert len({exception.code for exception in exceptions}) == len(exceptions)
    assert len({exception.message for exception in exceptions}) == len(exceptions)
