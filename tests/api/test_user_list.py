"""`GET /api/users`: who is listed, in what order, and a page at a time."""

from typing import Any
from uuid import UUID

import pytest
from httpx import Response
from sqlalchemy import delete

from src.db import AsyncDatabaseManager
from src.db.models import UserModel
from tests.support.factories import add_users
from tests.support.service import Service
from tests.support.steps import LoggedIn, create_admin, refusal

PEOPLE: list[dict[str, Any]] = [
    {"email": "emile@xn--bcher-kva.example", "name": "Émile ÖSTERBERG"},
    {"email": "percent@example.com", "name": "100% \\o/"},
    {"email": "under@example.com", "name": "snake_case"},
    {"email": "disabled@example.com", "name": "snakeXcase", "is_active": False},
    {"email": "former@example.com", "is_active": False, "is_admin": True},
    {"email": "waiting@example.com", "name": "Émile", "is_active": False, "activated_at": None},
]


@pytest.fixture
async def admin(service: Service) -> LoggedIn:
    """Older than everybody that the tests add."""
    return await create_admin(service)


async def list_users(service: Service, who: LoggedIn, **query: Any) -> Response:
    return await service.client.get("/api/users", params=query, headers=who.bearer)


async def page_through(service: Service, who: LoggedIn, **query: Any) -> list[list[str]]:
    """The ids on each page."""
    pages, more = list[list[str]](), dict[str, str]()
    while True:
        body = (await list_users(service, who, **query, **more)).json()
        pages.append([user["id"] for user in body["items"]])
        if body["next_cursor"] is None:
            return pages
        more = {"cursor": body["next_cursor"]}


async def test_pages_follow_each_other_in_order_of_age(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    added = await add_users(database, *({"email": f"u{number}@example.com"} for number in range(6)))
    ids = [admin.user_id, *added]

    oldest = await page_through(service, admin, limit=3)
    newest = await page_through(service, admin, limit=3, order="newest")

    assert oldest == [ids[:3], ids[3:6], ids[6:]]
    assert newest == [ids[:3:-1], ids[3:0:-1], ids[:1]]


async def test_a_page_holds_whole_records_and_the_cursor_of_the_next(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    await add_users(database, {"email": "ana@example.com"})
    mine = (await service.client.get(f"/api/users/{admin.user_id}", headers=admin.bearer)).json()

    page = (await list_users(service, admin, limit=1)).json()

    assert page == {"items": [mine], "next_cursor": page["next_cursor"]}
    assert page["next_cursor"]


async def test_a_last_page_that_is_full_names_no_next_one(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    await add_users(database, *({"email": f"u{number}@example.com"} for number in range(3)))

    assert [len(page) for page in await page_through(service, admin, limit=2)] == [2, 2]


async def test_a_cursor_survives_the_user_at_whom_the_page_ended(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    first, second = await add_users(database, {"email": "u1@example.com"}, {"email": "u2@example.com"})
    page = (await list_users(service, admin, limit=2)).json()
    async with database.session() as session:
        await session.execute(delete(UserModel).where(UserModel.id == UUID(first)))
        await session.commit()

    rest = (await list_users(service, admin, cursor=page["next_cursor"])).json()

    assert [user["id"] for user in rest["items"]] == [second]


async def test_a_page_has_up_to_a_hundred_users_and_fifty_by_default(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    await add_users(database, *({"email": f"u{number}@example.com"} for number in range(100)))

    sizes = {limit: len((await list_users(service, admin, limit=limit)).json()["items"]) for limit in (1, 100)}
    refusals = {limit: refusal(await list_users(service, admin, limit=limit)) for limit in (0, 101, "many")}

    assert sizes | {None: len((await list_users(service, admin)).json()["items"])} == {1: 1, 100: 100, None: 50}
    assert refusals == dict.fromkeys((0, 101, "many"), (422, "VALIDATION_ERROR", ["query.limit"]))


async def test_what_is_no_cursor_is_a_422_that_does_not_repeat_it(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    await add_users(database, {"email": "ana@example.com"})
    cursor = (await list_users(service, admin, limit=1)).json()["next_cursor"]
    # The last character carries four bits that are not part of the id; set, they would spell the same id again.
    other_spelling = cursor[:-1] + chr(ord(cursor[-1]) + 1)
    malformed = (
        "",
        "garbage!",
        cursor[:-1],
        f"{cursor}A",
        f"{cursor}==",
        f" {cursor}",
        other_spelling,
        admin.user_id,
        admin.user_id.replace("-", ""),
        f"{cursor[:5]}\0{cursor[6:]}",
        "é" * 22,
        "A" * 20_000,
    )

    responses = {each: await list_users(service, admin, cursor=each) for each in malformed}

    refusals = {each: refusal(response) for each, response in responses.items()}
    assert refusals == dict.fromkeys(malformed, (422, "VALIDATION_ERROR", ["query.cursor"]))
    assert [each for each in malformed if each and each in responses[each].text] == []


async def test_they_are_counted_on_request_alone_and_all_that_match(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    await add_users(database, *PEOPLE)

    everybody = (await list_users(service, admin, limit=2, count=True)).json()
    disabled = (await list_users(service, admin, limit=1, count=True, is_active=False)).json()
    last_page = (await list_users(service, admin, order="newest", cursor=everybody["next_cursor"], count=True)).json()

    assert everybody.keys() == {"items", "next_cursor", "count"}
    assert (everybody["count"], disabled["count"], last_page["count"]) == (6, 2, 6)
    assert "count" not in (await list_users(service, admin, count=False)).json()


async def test_filters_find_those_of_whom_all_of_them_hold(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    await add_users(database, *PEOPLE)
    accounts = ["admin", "emile", "percent", "under", "disabled", "former"]
    expected: dict[tuple[tuple[str, str], ...], list[str]] = {
        (): accounts,
        (("email", "UNDER@Example.COM"),): ["under"],
        (("email", "Emile@BÜCHER.example"),): ["emile"],
        (("email", "nder@example.com"),): [],
        (("email", "waiting@example.com"),): [],
        (("name", "émile ö"),): ["emile"],
        (("name", "ÖSTER"),): ["emile"],
        (("name", "SNAKE"),): ["under", "disabled"],
        (("name", "_"),): ["under"],
        (("name", "%"),): ["percent"],
        (("name", "\\"),): ["percent"],
        (("name", "\\o/"),): ["percent"],
        (("name", "' OR 1=1 --"),): [],
        (("is_active", "true"),): ["admin", "emile", "percent", "under"],
        (("is_active", "false"),): ["disabled", "former"],
        (("is_admin", "true"),): ["admin", "former"],
        (("is_admin", "false"),): ["emile", "percent", "under", "disabled"],
        (("is_admin", "true"), ("is_active", "false")): ["former"],
        (("pending", "true"),): ["waiting"],
        (("pending", "true"), ("name", "ÉMILE")): ["waiting"],
        (("pending", "false"), ("name", "ÉMILE")): ["emile"],
    }

    found = {query: (await list_users(service, admin, **dict(query))).json()["items"] for query in expected}

    names = {query: [user["email"].partition("@")[0] for user in users] for query, users in found.items()}
    assert names == expected


async def test_a_name_of_before_the_rules_for_names_is_listed_and_found(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    name = "Ana \u202ehttps://example.com"
    [user_id] = await add_users(database, {"email": "ana@example.com", "name": name})

    found = await list_users(service, admin, name="\u202ehttps://")

    assert [(user["id"], user["name"]) for user in found.json()["items"]] == [(user_id, name)]


async def test_a_filter_that_cannot_be_read_is_a_422_that_names_it(service: Service, admin: LoggedIn) -> None:
    wrong = {
        "email": "not-an-address",
        "name": "a\0b",
        "is_active": "perhaps",
        "is_admin": "2",
        "pending": "",
        "order": "random",
        "count": "all",
        "limitt": "10",
        "offset": "100",
    }

    refusals = {name: refusal(await list_users(service, admin, **{name: value})) for name, value in wrong.items()}

    assert refusals == {name: (422, "VALIDATION_ERROR", [f"query.{name}"]) for name in wrong}


async def test_a_parameter_whose_name_may_be_anything_is_not_repeated(service: Service, admin: LoggedIn) -> None:
    names = ("my secret words", "x" * 41)

    responses = [await list_users(service, admin, **{name: "1"}) for name in names]

    assert [refusal(response) for response in responses] == [(422, "VALIDATION_ERROR", ["query"])] * 2
