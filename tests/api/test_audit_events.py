"""Who may read which events, and how: page by page, and by what they ask for."""

from datetime import timedelta

from httpx import Response

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import AuditEventModel, EventKind, EventOutcome
from tests.api.audit_table import HERE, NOBODY
from tests.support.databases import list_events
from tests.support.service import Service
from tests.support.steps import (
    LoggedIn,
    bearer,
    create_account,
    create_admin,
    create_client,
    log_in,
    post_log_in,
    refusal,
    service_token,
)

UPDATES = ["user_update"] * 4


async def get_events(service: Service, who: LoggedIn, **query: str | int) -> Response:
    return await service.client.get("/api/audit-events", params=query, headers=who.bearer)


async def test_events_are_listed_the_newest_first_page_by_page(service: Service) -> None:
    root = await create_admin(service)
    for _ in range(4):
        await post_log_in(service)

    pages = [(await get_events(service, root, limit=3)).json()]
    while pages[-1]["next_cursor"]:
        await post_log_in(service)  # what comes meanwhile is newer than any page
        pages.append((await get_events(service, root, limit=3, cursor=pages[-1]["next_cursor"])).json())

    listed = [event for page in pages for event in page["items"]]
    assert [len(page["items"]) for page in pages] == [3, 3]
    assert [(event["kind"], event["outcome"]) for event in listed] == [
        *[("log_in", "failure")] * 4,
        ("log_in", "success"),
        ("user_creation", "success"),
    ]
    assert [event["id"] for event in listed] == sorted({event["id"] for event in listed}, reverse=True)


async def test_events_are_filtered_by_all_that_is_given(service: Service, database: AsyncDatabaseManager) -> None:
    ana, root = await create_account(service), await create_admin(service)
    client = await create_client(service, "users:write")
    headers = bearer(await service_token(service, client))
    for body in ({"name": "Ana"}, {"is_admin": True}):
        await service.client.patch(f"/api/users/{ana}", json=body, headers=headers)
        await service.client.patch(f"/api/users/{ana}", json=body, headers=root.bearer)
    middle = (await list_events(database))[3].created_at

    async def kinds(**query: str) -> list[str]:
        return [event["kind"] for event in (await get_events(service, root, **query)).json()["items"]]

    assert {
        "nothing": await kinds(),
        "user_id": await kinds(user_id=ana),
        "actor_id": await kinds(actor_id=root.user_id),
        "client_id": await kinds(client_id=str(client.client_id)),
        "kind": await kinds(kind="activation"),
        "outcome": await kinds(outcome="failure"),
        "since": await kinds(since=middle.isoformat()),
        "until": await kinds(until=middle.isoformat()),
        "several": await kinds(user_id=ana, outcome="failure", client_id=str(client.client_id)),
        "nobody": await kinds(user_id=str(NOBODY)),
    } == {
        "nothing": [*UPDATES, "client_token", "client_creation", "log_in", "user_creation", "activation", "sign_up"],
        "user_id": [*UPDATES, "activation", "sign_up"],
        "actor_id": ["user_update", "user_update", "log_in"],
        "client_id": ["user_update", "user_update", "client_token", "client_creation"],
        "kind": ["activation"],
        "outcome": ["user_update"],
        "since": UPDATES,
        "until": ["client_token", "client_creation", "log_in", "user_creation", "activation", "sign_up"],
        "several": ["user_update"],
        "nobody": [],
    }


async def test_what_cannot_be_filtered_by_is_a_422_that_names_it(service: Service) -> None:
    root = await create_admin(service)
    wrong = {
        "limit": ["0", "101", "many"],
        "cursor": ["", "none", "AAAA", "A" * 22 + "=="],
        "kind": ["everything", "LOG_IN"],
        "outcome": ["perhaps"],
        "since": ["2026-01-01T12:00:00", "2026-01-01", "yesterday", "0001-01-01T00:00:00+14:00", "0.5", "1767225600"],
        "until": ["2026-01-01T12:00:00", "2026-01-01T12Z", "9999-12-31T23:59:59-14:00"],
        "user_id": ["ana"],
        "actor_id": ["1"],
        "client_id": ["reports"],
    }

    refusals = {
        (name, value): refusal(await get_events(service, root, **{name: value}))
        for name, values in wrong.items()
        for value in values
    }

    assert refusals == {key: (422, "VALIDATION_ERROR", [f"query.{key[0]}"]) for key in refusals}


async def test_a_page_holds_as_many_events_as_are_asked_for_and_fifty_otherwise(
    service: Service, database: AsyncDatabaseManager
) -> None:
    root = await create_admin(service)
    async with database.session() as session:
        session.add_all(AuditEventModel(kind=EventKind.LOG_OUT, outcome=EventOutcome.SUCCESS) for _ in range(101))
        await session.commit()

    pages = [await get_events(service, root, **query) for query in ({"limit": 100}, {}, {"limit": 1})]

    assert [len(page.json()["items"]) for page in pages] == [100, 50, 1]


class TestOnesOwnEvents:
    async def test_are_those_about_oneself_and_do_not_tell_who_else_acted_or_from_where(self, service: Service) -> None:
        await create_account(service)
        ana, root = await log_in(service), await create_admin(service)
        headers = bearer(await service_token(service, await create_client(service, "users:write")))
        await post_log_in(service, password="a-wrong-password")
        await post_log_in(service, "ghost@example.com")
        await service.client.patch(f"/api/users/{ana.user_id}", json={"name": "Ana"}, headers=headers)
        await service.client.patch(f"/api/users/{ana.user_id}", json={"name": "Eve"}, headers=root.bearer)
        await service.client.patch(f"/api/users/{root.user_id}", json={"name": "Eve"}, headers=ana.bearer)

        page = (await service.client.get("/auth/events", headers=ana.bearer)).json()

        assert page["next_cursor"] is None
        assert {tuple(event) for event in page["items"]} == {
            ("id", "kind", "outcome", "reason", "changes", "origin", "created_at")
        }
        assert [(event["kind"], event["reason"], event["changes"], event["origin"]) for event in page["items"]] == [
            ("user_update", None, "name", None),
            ("user_update", None, "name", None),
            ("log_in", "INVALID_CREDENTIALS", None, HERE),
            ("log_in", None, None, HERE),
            ("activation", None, None, HERE),
            ("sign_up", None, None, HERE),
        ]

    async def test_come_in_pages_and_by_kind_outcome_and_time(self, service: Service) -> None:
        await create_account(service)
        ana = await log_in(service)

        async def kinds(**query: str) -> list[str]:
            response = await service.client.get("/auth/events", params=query, headers=ana.bearer)
            return [event["kind"] for event in response.json()["items"]]

        first = (await service.client.get("/auth/events", params={"limit": 2}, headers=ana.bearer)).json()
        later = (utc_now() + timedelta(hours=1)).isoformat()
        assert [event["kind"] for event in first["items"]] == ["log_in", "activation"]
        assert await kinds(cursor=first["next_cursor"]) == ["sign_up"]
        assert await kinds(kind="activation", outcome="success", until=later) == ["activation"]
        assert await kinds(since=later) == await kinds(outcome="failure") == []

    async def test_of_somebody_else_cannot_be_asked_for(self, service: Service) -> None:
        await create_account(service)
        other = await create_account(service, "eve@example.com")
        ana = await log_in(service)

        response = await service.client.get("/auth/events", params={"user_id": other}, headers=ana.bearer)

        assert refusal(response)[:2] == (422, "VALIDATION_ERROR")
