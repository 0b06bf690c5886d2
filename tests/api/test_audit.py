"""The event that every action leaves, done or refused. How events are read is in test_audit_events.py."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient, Request, Response
from sqlalchemy import Row, delete, select, text

from src.core.exceptions import AppException
from src.db import AsyncDatabaseManager
from src.db.models import AuditEventModel, EventKind, ServiceClientModel, UserModel
from tests.api.audit_table import COUNTED, HASH, NOBODY, TABLE, Action, Event, Flow, Line, Stage
from tests.support.databases import (
    count_statements,
    dump,
    dump_events,
    list_events,
    read_all_but_events,
    recorded_statements,
)
from tests.support.factories import add_logged_in
from tests.support.hashing import count_hashes, hold, start_waiting
from tests.support.service import Service, Starter, StartMailingService, StartService
from tests.support.steps import (
    PASSWORD,
    LoggedIn,
    activate,
    bearer,
    create_account,
    create_admin,
    create_client,
    delete_user,
    leave,
    log_in,
    log_out,
    patch_user,
    post_log_in,
    post_sign_up,
    service_token,
    sign_up,
    token_of,
)


@dataclass(frozen=True)
class Shared:
    """What all rows of the table share: each has people of its own."""

    stage: Stage
    secrets: set[str]
    database: AsyncDatabaseManager


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_starter: Starter) -> Shared:
    service = await shared_starter.start(auth_return_token_in_response=True)
    mailing = await shared_starter.start_mailing()
    root = await add_logged_in(service, "root@example.com", hashed_password=HASH, is_admin=True)
    database = (await shared_starter.start()).database
    return Shared(Stage(service, mailing, root, 0), listen_for_secrets(service, mailing), database)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("number", "line"), [*enumerate(TABLE)], ids=[line.flow.__name__ for line in TABLE])
async def test_an_action_leaves_its_event_with_nothing_secret_and_a_refusal_nothing_else(
    shared: Shared, number: int, line: Line
) -> None:
    database = shared.database
    action = await line.flow(replace(shared.stage, number=number))
    before, newest = await read_all_but_events(database), await newest_event(database)

    told = await code_told(action)

    assert await events_since(database, newest) == [line.event]
    if line.reason_in_answer:
        assert told == line.event.reason
    if line.event.reason and line.changes_nothing:
        assert await read_all_but_events(database) == before
    events = await dump_events(database)
    assert {secret for secret in shared.secrets | stored_secrets(before) if secret in events} == set()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("number", "flow", "kind", "code"),
    [(number, *each) for number, each in enumerate(COUNTED, len(TABLE))],
    ids=[flow.__name__ for flow, _, _ in COUNTED],
)
async def test_a_failure_that_names_nobody_is_counted_and_leaves_nothing(
    shared: Shared, number: int, flow: Flow, kind: EventKind, code: str
) -> None:
    stage = replace(shared.stage, number=number)
    action = await flow(stage)
    before, newest = await read_all_but_events(shared.database), await newest_event(shared.database)
    counted = stage.service.anonymous_failures + stage.mailing.anonymous_failures

    await action

    now_counted = stage.service.anonymous_failures + stage.mailing.anonymous_failures
    assert now_counted - counted == {(kind, code): 1}
    assert await events_since(shared.database, newest) == []
    assert await read_all_but_events(shared.database) == before


async def test_the_search_for_secrets_knows_what_is_sent_answered_and_stored(
    service: Service, database: AsyncDatabaseManager
) -> None:
    secrets = listen_for_secrets(service)

    link = (await sign_up(service, name="Ana the Unique"))["activation_url"]
    await activate(service, token_of(link))
    ana = await log_in(service)

    heard = {"ana@example.com", PASSWORD, "Ana the Unique", token_of(link), ana.access_token, ana.refresh_token}
    assert secrets == heard
    [stored] = stored_secrets(await read_all_but_events(database))
    assert stored.startswith("$bcrypt-sha256$")


def test_no_kind_of_event_is_missing_from_the_table() -> None:
    assert {line.event.kind for line in TABLE} == set(EventKind)


def test_every_kind_is_shown_done_and_refused_where_it_can_be() -> None:
    done = {line.event.kind for line in TABLE if line.event.reason is None}
    refused = {line.event.kind for line in TABLE if line.event.reason} | {kind for _, kind, _ in COUNTED}

    assert set(EventKind) - done == {EventKind.REFRESH_REPLAY, EventKind.ACCESS_REFUSAL}
    assert set(EventKind) - refused == {
        EventKind.USER_IMPORT,
        EventKind.ACTIVATION_RESEND,
        EventKind.KEY_ROTATION,
        EventKind.KEY_RETIREMENT,
    }


SECRET_OR_PERSONAL = (
    *("password", "current_password", "new_password", "email", "new_email", "username", "name"),
    *("token", "access_token", "refresh_token", "client_secret", "second_factor_token"),
    *("secret", "otpauth_uri", "qr_code"),
)


def listen_for_secrets(*services: Service) -> set[str]:
    """Grows with all that is sent and answered and must be in no event."""
    heard: set[str] = set()

    async def hear_request(request: Request) -> None:
        body = request.content.decode()
        hear(json.loads(body) if body.startswith("{") else dict(parse_qsl(body)))

    async def hear_response(response: Response) -> None:
        await response.aread()
        hear(response.json() if response.text.startswith("{") else {})

    def hear(fields: dict[str, Any]) -> None:
        heard.update(fields[name] for name in SECRET_OR_PERSONAL if fields.get(name))
        heard.update(fields.get("recovery_codes", ()))
        heard.update(token_of(url) for name, url in fields.items() if name.endswith("_url") and url)

    for service in services:
        service.client.event_hooks["request"].append(hear_request)
        service.client.event_hooks["response"].append(hear_response)
    return heard


def stored_secrets(tables: dict[str, Sequence[Row[Any]]]) -> set[str]:
    return {
        *(row.hashed_password for row in tables["users"]),
        *(row.token_hash for row in tables["user_tokens"]),
        *(row.secret_hash for row in tables["service_clients"]),
        *(row.code_hash for row in tables["recovery_codes"]),
    }


async def code_told(action: Action) -> str | None:
    """The code of a refusal, over HTTP or not."""
    try:
        answer = await action
    except AppException as refusal:
        return refusal.code
    if isinstance(answer, Response) and answer.status_code >= 400 and answer.text.startswith("{"):
        return str(answer.json()["code"])
    return None


async def newest_event(database: AsyncDatabaseManager) -> UUID:
    return next((event.id for event in await list_events(database)), NOBODY)


async def events_since(database: AsyncDatabaseManager, newest: UUID) -> list[Event]:
    """By name: of a person, what is before the @ of the address; of a service, what is before the number."""
    async with database.session() as session:
        people = (await session.execute(select(UserModel.id, UserModel.email))).all()
        services = (await session.execute(select(ServiceClientModel.id, ServiceClientModel.name))).all()
        new = select(AuditEventModel).where(AuditEventModel.id > newest).order_by(AuditEventModel.id)
        events = (await session.scalars(new)).all()
    assert {event.outcome for event in events if event.reason} <= {"failure"}
    assert {event.outcome for event in events if not event.reason} <= {"success"}
    names: dict[UUID | None, str] = {id_: email.partition("@")[0] for id_, email in people}
    names |= {row.id: row.name.partition("-")[0] for row in services}
    return [
        Event(
            kind=EventKind(event.kind),
            reason=event.reason,
            on=names.get(event.user_id),
            by=names.get(event.actor_id),
            client=names.get(event.client_id),
            changes=event.changes,
            origin=event.origin,
            has_address_hash=event.address_hash is not None,
        )
        for event in events
    ]


# --- what an event tells of people, and what it never does ---


async def test_that_the_service_is_busy_is_no_refusal(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service = await start_service(auth_hash_threads=1, auth_hash_queue_size=2)
    gate = asyncio.get_running_loop().create_future()
    holding = await hold(service.hash_pool, gate, jobs=3)

    response = await post_log_in(service)

    gate.set_result(None)
    await asyncio.gather(*holding)
    assert response.status_code == 503
    assert await list_events(database) == []


async def test_the_zone_of_an_ipv6_address_is_not_stored(service: Service, database: AsyncDatabaseManager) -> None:
    transport = ASGITransport(app=service.app, client=("fe80::1%" + "z" * 50, 1))
    await create_account(service)

    async with AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/auth/login", json={"email": "ana@example.com", "password": PASSWORD})

    assert response.status_code == 200
    assert (await list_events(database))[0].origin == "fe80::1"


class TestAnUnknownAddress:
    async def test_is_stored_as_a_hash_that_nobody_else_can_make(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await post_log_in(service, "ghost@example.com")
        await post_log_in(service, "Ghost@EXAMPLE.com")
        await post_log_in(service, "spirit@example.com")

        spirit, again, ghost = [event.address_hash for event in await list_events(database)]

        assert ghost == again != spirit
        assert ghost is not None
        assert len(bytes.fromhex(ghost)) == 32
        guessable = [b"", b"fingerprint", b"audit", b"address", service.settings.issuer.encode()]
        assert ghost not in [hmac.digest(key, b"ghost@example.com", "sha256").hex() for key in guessable]
        assert ghost != hashlib.sha256(b"ghost@example.com").hexdigest()

    async def test_is_in_no_table(self, service: Service, database: AsyncDatabaseManager) -> None:
        await post_log_in(service, "ghost@example.com")
        await service.client.post("/auth/password-reset/request", json={"email": "ghost@example.com"})

        assert "ghost" not in await dump(database)

    async def test_costs_a_log_in_the_same_statements(self, service: Service) -> None:
        await create_account(service)
        root = await create_admin(service)
        disabled = await create_account(service, "disabled@example.com")
        await service.client.patch(f"/api/users/{disabled}", json={"is_active": False}, headers=root.bearer)

        asked = {
            name: await count_statements(service.database, post_log_in(service, f"{name}@example.com", password))
            for name, password in (("ana", "a-wrong-password"), ("ghost", PASSWORD), ("disabled", PASSWORD))
        }

        assert asked["ana"].total() > 0
        assert asked == dict.fromkeys(asked, asked["ana"])


class TestWhoIsGone:
    async def test_a_refusal_whose_caller_is_gone_leaves_an_event_of_nobody(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(service)
        ana, root = await log_in(service), await create_admin(service)
        pool = count_hashes(service)
        gate = asyncio.get_running_loop().create_future()
        holding = await hold(pool, gate, jobs=3)
        body = {"current_password": PASSWORD, "new_password": "another-password"}
        change = await start_waiting(pool, service.client.post("/auth/password-change", json=body, headers=ana.bearer))
        deletion = await service.client.delete(f"/api/users/{ana.user_id}", headers=root.bearer)

        gate.set_result(None)
        response = await change

        await asyncio.gather(*holding)
        assert deletion.status_code == 204
        assert (response.status_code, response.json()["code"]) == (401, "INVALID_ACCESS_TOKEN")
        event = (await events_since(database, NOBODY))[-1]
        assert event == Event(EventKind.PASSWORD_CHANGE, "INVALID_ACCESS_TOKEN", origin=None)

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_a_refusal_waits_to_see_whether_who_is_being_deleted_is_gone(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = UUID(await create_account(service))
        async with database.session() as deleting:
            await deleting.execute(delete(UserModel).where(UserModel.id == user_id))

            refused = asyncio.create_task(post_log_in(service, password="a-wrong-password"))
            while not (await deleting.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))):
                assert not refused.done()
            await deleting.commit()

        assert (await refused).status_code == 401
        event = (await events_since(database, NOBODY))[-1]
        assert event == Event(EventKind.LOG_IN, "INVALID_CREDENTIALS", origin=None)

    async def test_somebody_who_leaves_is_taken_out_of_every_event(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = await create_account(service)
        await post_log_in(service, password="a-wrong-password")
        ana = await log_in(service)
        await service.client.patch(f"/api/users/{NOBODY}", json={"name": "Ana"}, headers=ana.bearer)

        await service.client.post("/auth/delete-account", json={"current_password": PASSWORD}, headers=ana.bearer)

        assert user_id.replace("-", "") not in (await dump_events(database)).replace("-", "")
        assert await events_since(database, NOBODY) == [
            Event(EventKind.SIGN_UP, origin=None),
            Event(EventKind.ACTIVATION, origin=None),
            Event(EventKind.LOG_IN, "INVALID_CREDENTIALS", origin=None),
            Event(EventKind.LOG_IN, origin=None),
            Event(EventKind.USER_UPDATE, "FORBIDDEN", changes="name", origin=None),
            Event(EventKind.ACCOUNT_DELETION, origin=None),
        ]

    async def test_an_administrators_and_a_services_own_origin_stays_on_what_they_did(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = await create_account(service)
        root = await create_admin(service, "root@example.com")
        headers = bearer(await service_token(service, await create_client(service, "users:write")))
        newest = await newest_event(database)
        await service.client.patch(f"/api/users/{user_id}", json={"name": "Ana"}, headers=headers)
        await service.client.patch(f"/api/users/{user_id}", json={"name": "Eve"}, headers=root.bearer)

        await service.client.delete(f"/api/users/{user_id}", headers=root.bearer)

        assert await events_since(database, newest) == [
            Event(EventKind.USER_UPDATE, client="reports", changes="name"),
            Event(EventKind.USER_UPDATE, by="root", changes="name"),
            Event(EventKind.USER_DELETION, by="root"),
        ]

    async def test_an_administrator_who_is_removed_is_taken_out_of_what_they_did(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = await create_account(service)
        boss = await create_admin(service, "boss@example.com")
        root = await create_admin(service, "root@example.com")
        newest = await newest_event(database)
        await service.client.patch(f"/api/users/{user_id}", json={"name": "Ana"}, headers=boss.bearer)

        await service.client.delete(f"/api/users/{boss.user_id}", headers=root.bearer)

        assert await events_since(database, newest) == [
            Event(EventKind.USER_UPDATE, on="ana", changes="name", origin=None),
            Event(EventKind.USER_DELETION, by="root"),
        ]

    async def test_that_it_was_the_command_line_is_nobodys_secret(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        boss, root = await create_admin(service, "boss@example.com"), await create_admin(service, "root@example.com")

        await service.client.delete(f"/api/users/{boss.user_id}", headers=root.bearer)

        creation = (await events_since(database, NOBODY))[0]
        assert creation == Event(EventKind.USER_CREATION, changes="is_admin=true", origin="command line")


ASKING_AGAIN = pytest.mark.parametrize(
    ("path", "has_account"),
    [
        pytest.param("/auth/password-reset/request", True, id="reset"),
        pytest.param("/auth/activation/resend", True, id="resend-to-an-owner"),
        pytest.param("/auth/activation/resend", False, id="resend-to-a-sign-up"),
    ],
)


class TestAskingForAnEmail:
    @ASKING_AGAIN
    async def test_leaves_an_event_where_there_is_somebody_and_is_counted_where_not(
        self,
        start_mailing_service: StartMailingService,
        database: AsyncDatabaseManager,
        path: str,
        *,
        has_account: bool,
    ) -> None:
        service = await start_mailing_service()
        await (create_account if has_account else sign_up)(service)
        service.hold_emails()
        newest = await newest_event(database)

        for email in ("ana@example.com", "ghost@example.com") * 3:
            await service.client.post(path, json={"email": email})

        assert [event.on for event in await events_since(database, newest)] == ["ana"] * 3
        assert service.anonymous_failures.total() == 3

    @ASKING_AGAIN
    async def test_costs_the_statement_of_an_event_whether_or_not_it_leaves_one(
        self, start_mailing_service: StartMailingService, path: str, *, has_account: bool
    ) -> None:
        service = await start_mailing_service()
        await (create_account if has_account else sign_up)(service)
        service.hold_emails()

        with recorded_statements(service.database) as statements:
            for email in ("ana@example.com", "ghost@example.com") * 3:
                await service.client.post(path, json={"email": email})

        assert sum(statement.startswith("INSERT INTO audit_events") for statement in statements) == 6


async def test_garbage_costs_no_transaction(start_service: StartService) -> None:
    service = await start_service(rate_limit_enabled=False)  # counting costs a statement, until garbage is refused

    async def send_garbage() -> None:
        await service.client.post("/auth/logout", json={"refresh_token": "garbage"})
        await post_sign_up(service, password="short")

    assert await count_statements(service.database, send_garbage()) == {}


async def test_a_log_out_from_a_session_that_has_ended_leaves_no_event(
    service: Service, database: AsyncDatabaseManager
) -> None:
    await create_account(service)
    ana = await log_in(service)
    await log_out(service, ana)
    newest = await newest_event(database)

    response = await service.client.post("/auth/logout", json={"refresh_token": ana.refresh_token})

    assert response.status_code == 204
    assert await events_since(database, newest) == []


class TestAnInvitationOfAnAdministrator:
    """Whoever sent it may have lost the right to: it makes no administrator any more."""

    @pytest.fixture
    async def root(self, service: Service) -> LoggedIn:
        return await create_admin(service, "root@example.com")

    @pytest.fixture
    async def boss(self, service: Service, root: LoggedIn) -> LoggedIn:
        for name, is_admin in (("ana", True), ("bob", True), ("eve", False)):
            body = {"email": f"{name}@example.com", "is_admin": is_admin}
            await service.client.post("/api/users", json=body, headers=root.bearer)
        return await create_admin(service, "boss@example.com")

    @pytest.mark.parametrize(
        ("changes", "summary"),
        [({"is_admin": False}, "is_admin=false"), ({"is_active": False}, "is_active=false")],
        ids=["demoted", "disabled"],
    )
    async def test_that_an_update_of_one_changes_leaves_an_event_of_its_own(
        self,
        service: Service,
        database: AsyncDatabaseManager,
        root: LoggedIn,
        boss: LoggedIn,
        changes: dict[str, bool],
        summary: str,
    ) -> None:
        newest = await newest_event(database)

        await patch_user(service, root, boss.user_id, **changes)

        events = await events_since(database, newest)
        assert sorted(events, key=lambda event: str(event.on)) == [
            Event(EventKind.USER_UPDATE, on="ana", by="root", changes="is_admin=false"),
            Event(EventKind.USER_UPDATE, on="bob", by="root", changes="is_admin=false"),
            Event(EventKind.USER_UPDATE, on="boss", by="root", changes=summary),
        ]

    async def test_that_a_deletion_of_one_changes_leaves_an_event_of_its_own(
        self, service: Service, database: AsyncDatabaseManager, root: LoggedIn, boss: LoggedIn
    ) -> None:
        newest = await newest_event(database)

        await delete_user(service, root, boss.user_id)

        events = await events_since(database, newest)
        assert [(event.kind, event.by, event.changes) for event in events] == [
            ("user_update", "root", "is_admin=false"),
            ("user_update", "root", "is_admin=false"),
            ("user_deletion", "root", None),
        ]

    async def test_that_a_departure_of_one_changes_leaves_an_event_that_does_not_tell_of_who_left(
        self, service: Service, database: AsyncDatabaseManager, boss: LoggedIn
    ) -> None:
        newest = await newest_event(database)

        await leave(service, boss)

        events = await events_since(database, newest)
        assert [(event.kind, event.by, event.changes, event.origin) for event in events] == [
            ("user_update", None, "is_admin=false", None),
            ("user_update", None, "is_admin=false", None),
            ("account_deletion", None, None, None),
        ]
