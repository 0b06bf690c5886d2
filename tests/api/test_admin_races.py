"""Acts of administrators that meet others at one moment: an administrator remains, and nobody gets an error of ours."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import func, select, update

from src.core.limits import Rate
from src.db import AsyncDatabaseManager
from src.db.models import SessionModel, UserModel
from tests.support.service import Service, StartMailingService, clients_of
from tests.support.steps import (
    PASSWORD,
    LoggedIn,
    bearer,
    create_account,
    create_admin,
    create_client,
    log_in,
    me,
    post_log_in,
    refresh,
    service_token,
)

pytestmark = pytest.mark.slow  # each meets the others at many moments, round after round

Action = Callable[[Service, LoggedIn, LoggedIn], Awaitable[Response]]


async def demote(service: Service, who: LoggedIn, whom: LoggedIn) -> Response:
    return await patch(service, who, whom.user_id, is_admin=False)


async def disable(service: Service, who: LoggedIn, whom: LoggedIn) -> Response:
    return await patch(service, who, whom.user_id, is_active=False)


async def remove(service: Service, who: LoggedIn, whom: LoggedIn) -> Response:
    return await service.client.delete(f"/api/users/{whom.user_id}", headers=who.bearer)


async def leave(service: Service, who: LoggedIn, _whom: LoggedIn) -> Response:
    return await service.client.post("/auth/delete-account", json={"current_password": PASSWORD}, headers=who.bearer)


async def be_demoted(service: Service, who: LoggedIn, whom: LoggedIn) -> Response:
    return await demote(service, whom, who)


async def demote_themselves(service: Service, who: LoggedIn, _whom: LoggedIn) -> Response:
    return await demote(service, who, who)


async def disable_oneself(service: Service, who: LoggedIn, _whom: LoggedIn) -> Response:
    return await disable(service, who, who)


async def remove_oneself(service: Service, who: LoggedIn, _whom: LoggedIn) -> Response:
    return await remove(service, who, who)


async def patch(service: Service, who: LoggedIn, user_id: str, **body: Any) -> Response:
    return await service.client.patch(f"/api/users/{user_id}", json=body, headers=who.bearer)


async def make_two(service: Service, round_: int) -> list[LoggedIn]:
    return [await create_admin(service, f"{name}-{round_}@example.com") for name in ("ana", "bob")]


async def active_admins(database: AsyncDatabaseManager) -> int:
    query = select(func.count()).where(UserModel.is_admin, UserModel.is_active, UserModel.activated_at.is_not(None))
    async with database.session() as session:
        return await session.scalar(query) or 0


async def demote_all(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        await session.execute(update(UserModel).values(is_admin=False))
        await session.commit()


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.slow)])
async def test_of_two_administrators_who_demote_each_other_one_remains(
    service: Service, database: AsyncDatabaseManager, rounds: int
) -> None:
    ana, bob = await make_two(service, 0)

    outcomes = []
    for _ in range(rounds):
        async with database.session() as session:
            await session.execute(update(UserModel).values(is_admin=True))
            await session.commit()
        answers = await asyncio.gather(demote(service, ana, bob), demote(service, bob, ana))
        outcomes.append((sorted(answer.status_code for answer in answers), await active_admins(database)))

    assert outcomes == [([200, 403], 1)] * rounds


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("actions", "statuses"),
    [
        pytest.param((disable, disable), {200, 401, 409}, id="disable-disable"),
        pytest.param((remove, remove), {204, 401, 409}, id="remove-remove"),
        pytest.param((remove, demote), {200, 204, 401, 403, 409}, id="remove-demote"),
        pytest.param((leave, be_demoted), {200, 204, 401, 409}, id="leave-demote"),
        pytest.param((leave, leave), {204, 409}, id="leave-leave"),
        # The only rows that both of these must wait for are those of all administrators.
        pytest.param((demote_themselves, demote_themselves), {200, 409}, id="both-demote-themselves"),
        pytest.param((disable_oneself, remove_oneself), {200, 204, 409}, id="disable-and-remove-oneself"),
    ],
)
async def test_of_two_administrators_who_act_at_once_one_remains(
    service: Service, database: AsyncDatabaseManager, actions: tuple[Action, Action], statuses: set[int], rounds: int
) -> None:
    for round_ in range(rounds):
        await demote_all(database)
        ana, bob = await make_two(service, round_)

        answers = await asyncio.gather(actions[0](service, ana, bob), actions[1](service, bob, ana))

        assert {answer.status_code for answer in answers} <= statuses
        assert await active_admins(database) == 1


async def test_of_administrators_who_all_leave_at_once_one_remains(
    service: Service, database: AsyncDatabaseManager
) -> None:
    people = [await create_admin(service, f"u{number}@example.com") for number in range(8)]

    answers = await asyncio.gather(*(leave(service, who, who) for who in people))

    assert Counter(answer.status_code for answer in answers) == {204: 7, 409: 1}
    assert await active_admins(database) == 1


async def log_in_again(service: Service, _who: LoggedIn, _admin: LoggedIn) -> Response:
    return await post_log_in(service)


async def log_out(service: Service, who: LoggedIn, _admin: LoggedIn) -> Response:
    return await service.client.post("/auth/logout", headers=who.bearer)


async def replay(service: Service, who: LoggedIn, _admin: LoggedIn) -> Response:
    """`who` has refreshed twice since, so that this ends their session."""
    return await refresh(service, who.refresh_token)


async def ask_to_move(service: Service, who: LoggedIn, _admin: LoggedIn) -> Response:
    body = {"new_email": "new@example.com", "current_password": PASSWORD}
    return await service.client.post("/auth/email-change/request", json=body, headers=who.bearer)


async def rename(service: Service, who: LoggedIn, admin: LoggedIn) -> Response:
    return await patch(service, admin, who.user_id, name="Bo")


async def promote(service: Service, who: LoggedIn, admin: LoggedIn) -> Response:
    return await patch(service, admin, who.user_id, is_admin=True)


async def disable_them(service: Service, who: LoggedIn, admin: LoggedIn) -> Response:
    return await disable(service, admin, who)


async def send_reset(service: Service, who: LoggedIn, admin: LoggedIn) -> Response:
    return await service.client.post(f"/api/users/{who.user_id}/password-reset", headers=admin.bearer)


async def revoke_sessions(service: Service, who: LoggedIn, admin: LoggedIn) -> Response:
    return await service.client.delete(f"/api/users/{who.user_id}/sessions", headers=admin.bearer)


RIVALS: tuple[Action, ...] = (
    log_in_again,
    log_out,
    replay,
    ask_to_move,
    leave,
    rename,
    promote,
    disable_them,
    send_reset,
    revoke_sessions,
)


# Each round asks for emails to the same addresses, and has log-ins that fail since their user is gone. The limits stay
# on, since what they lock is a part of the race.
ROOM_FOR_ALL = {
    f"rate_limit_{name}": Rate.parse("1000/1m")
    for name in (
        "requests_per_origin",
        "failures_per_account_and_origin",
        "failures_per_account",
        "emails_per_address_and_origin",
        "emails_per_address",
    )
}


async def meet(service: Service, rivals: tuple[Action, ...], *, rounds: int) -> Counter[int]:
    """Remove somebody while they, or another administrator, do these; how all of it was answered.

    They begin a little later in each round, so that they meet every step of the removal.
    """
    admin, other = await make_two(service, 0)
    statuses, removal_seconds = Counter[int](), 0.0

    async def do(rival: Action, who: LoggedIn, delay: float) -> Response:
        await asyncio.sleep(delay)
        return await rival(service, who, other)

    for round_ in range(rounds):
        await create_account(service)
        ana = await log_in(service)
        token = ana.refresh_token
        for _ in range(2):
            token = (await refresh(service, token)).json()["refresh_token"]

        delay = removal_seconds * round_ / rounds
        answers = await asyncio.gather(*(do(rival, ana, delay) for rival in rivals), remove(service, admin, ana))

        removal_seconds = answers[-1].elapsed.total_seconds()
        statuses.update(answer.status_code for answer in answers)
        gone = await service.client.get(f"/api/users/{ana.user_id}", headers=admin.bearer)
        assert gone.status_code == 404
    return statuses


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
async def test_all_that_meets_a_removal_gets_its_turn(start_mailing_service: StartMailingService, rounds: int) -> None:
    statuses = await meet(await start_mailing_service(**ROOM_FOR_ALL), RIVALS, rounds=rounds)

    assert statuses.keys() <= {200, 202, 204, 401, 403, 404, 409}, statuses


@pytest.mark.slow
@pytest.mark.parametrize("rival", RIVALS)
async def test_what_meets_a_removal_gets_its_turn(start_mailing_service: StartMailingService, rival: Action) -> None:
    statuses = await meet(await start_mailing_service(**ROOM_FOR_ALL), (rival,), rounds=20)

    assert statuses.keys() <= {200, 202, 204, 401, 403, 404, 409}, statuses


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
async def test_what_administrators_do_while_they_are_removed_gets_its_turn(
    start_mailing_service: StartMailingService, rounds: int
) -> None:
    service = await start_mailing_service(**ROOM_FOR_ALL)
    remaining = await create_admin(service)
    await create_account(service, "bob@example.com")
    bob = await log_in(service, "bob@example.com")
    statuses = Counter[int]()

    for round_ in range(rounds):
        leaving = await create_admin(service, "leaving@example.com")
        invitation = {"email": f"new-{round_}@example.com"}
        answers = await asyncio.gather(
            rename(service, bob, leaving),
            disable(service, leaving, bob),
            send_reset(service, bob, leaving),
            revoke_sessions(service, bob, leaving),
            rename(service, leaving, leaving),
            service.client.post("/api/users", json=invitation, headers=leaving.bearer),
            remove(service, remaining, leaving),
        )
        statuses.update(answer.status_code for answer in answers)

    assert statuses.keys() <= {200, 201, 202, 204, 401, 404, 409}, statuses
    assert (await post_log_in(service, "leaving@example.com")).status_code == 401
    assert (await me(service, remaining)).status_code == 200


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_service_is_revoked_after_what_it_has_begun(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account(service)
    ana = await log_in(service)
    writer = bearer(await service_token(service, await create_client(service, "users:write")))

    async def revoke() -> None:
        async with clients_of(service) as clients:
            await clients.revoke("reports")

    async with database.session() as holding:
        await holding.execute(select(SessionModel.id).with_for_update())
        url, body = f"/api/users/{ana.user_id}", {"is_active": False}
        disabling = asyncio.create_task(service.client.patch(url, json=body, headers=writer))
        await asyncio.sleep(0.5)  # until it waits for the session
        revoking = asyncio.create_task(revoke())
        await asyncio.sleep(0.5)
        was_revoked_before = revoking.done()
        await holding.commit()

    assert (await disabling).status_code == 200
    await revoking
    assert not was_revoked_before
    assert (await service.client.patch(url, json=body, headers=writer)).status_code == 401
