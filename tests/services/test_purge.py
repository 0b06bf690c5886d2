"""The purge forgets what has ended, and nothing else."""

import asyncio
from collections import Counter
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import delete, insert, select, update

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import (
    AuditEventModel,
    OutboxEmailModel,
    OutboxStatus,
    SecondFactorModel,
    SessionModel,
    UserModel,
    UserTokenModel,
    rate_limits,
)
from src.db.repositories import AuditEventRepository, SessionRepository, UserRepository, UserTokenRepository
from src.services.purge import BATCH, Purged, purge
from tests.support.databases import add_rows, execute, recorded_statements, writing
from tests.support.factories import age_users, expire_links, id_of, make_user
from tests.support.second_factor import add_second_factor, begin_set_up
from tests.support.service import MailingService, Service, make_settings
from tests.support.steps import (
    NEW_PASSWORD,
    activate,
    create_account,
    log_in,
    log_out,
    me,
    post_log_in,
    resend,
    sign_up,
    token_of,
)


async def test_what_is_alive_stays(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account(service)
    who = await log_in(service)
    waiting = await sign_up(service, "waiting@example.com")
    await age_users(database, hours=47)

    assert await purge(database, make_settings()) == Purged()

    assert (await me(service, who)).status_code == 200
    assert (await activate(service, token_of(waiting["activation_url"]))).status_code == 200


async def test_a_sign_up_is_forgotten_by_its_age_whatever_links_and_emails_there_are(
    mailing_service: MailingService, database: AsyncDatabaseManager
) -> None:
    account = await create_account(mailing_service)
    await sign_up(mailing_service, "waiting@example.com")
    mailing_service.hold_emails()
    await resend(mailing_service, "waiting@example.com")
    await age_users(database, hours=49)

    assert await purge(database, make_settings()) == Purged(sign_ups=1)

    async with database.session() as session:
        assert [str(user.id) for user in await UserRepository(session).list()] == [account]
        assert await UserTokenRepository(session).count() == 0


async def test_ended_sessions_are_forgotten(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account(service)
    for ending in ("revoked_at", "idle_expires_at", "expires_at", None):
        await log_in(service)
        async with database.session() as session:
            newest = (await SessionRepository(session).list())[-1]
            if ending:
                past = utc_now() - timedelta(seconds=1)
                values = {ending: past, "last_used_at": utc_now() - timedelta(days=31)}
                await session.execute(update(SessionModel).where(SessionModel.id == newest.id).values(values))
                await session.commit()

    assert await purge(database, make_settings()) == Purged(sessions=3)

    async with database.session() as session:
        assert await SessionRepository(session).count() == 1


async def test_a_young_sign_up_without_a_link_waits_as_long_as_one_with_a_link(
    service: Service, database: AsyncDatabaseManager
) -> None:
    await sign_up(service)
    await expire_links(database)

    await purge(database, make_settings())

    async with database.session() as session:
        assert await UserRepository(session).count() == 1


async def test_events_are_kept_for_as_long_as_the_setting_says(
    service: Service, database: AsyncDatabaseManager
) -> None:
    for _ in range(3):
        await post_log_in(service)
    async with database.session() as session:
        *_, old, older = (await session.scalars(select(AuditEventModel.id).order_by(AuditEventModel.id.desc()))).all()
        aged = {id_: id_of(utc_now() - timedelta(seconds=seconds)) for id_, seconds in ((old, 99), (older, 101))}
        for id_, aged_id in aged.items():
            await session.execute(update(AuditEventModel).where(AuditEventModel.id == id_).values(id=aged_id))
        await session.commit()

    purged = await purge(database, make_settings(audit_retention_seconds=100))

    assert purged == Purged(events=1)
    async with database.session() as session:
        assert not await AuditEventRepository(session).exists({"id": aged[older]})
        assert await AuditEventRepository(session).count() == 2


async def add_ended(database: AsyncDatabaseManager, count: int) -> None:
    """So many rows of each kind that the purge forgets."""
    past = utc_now() - timedelta(days=400)
    account = make_user()
    await add_rows(database, account)
    sign_up = {"email": "waiting@example.com", "hashed_password": "-", "activated_at": None, "created_at": past}
    token = {"user_id": account.id, "purpose": "-", "expires_at": past}
    session = {"user_id": account.id, "idle_expires_at": past, "expires_at": past, "last_used_at": past}
    email = {"kind": "-", "to_email": "-", "status": OutboxStatus.SENT, "updated_at": past}
    event = {"kind": "log_in", "outcome": "failure"}
    async with writing(database) as writer:
        await writer.execute(insert(UserModel), [sign_up] * count)
        await writer.execute(insert(UserTokenModel), [token | {"token_hash": str(number)} for number in range(count)])
        await writer.execute(insert(SessionModel), [session] * count)
        await writer.execute(insert(OutboxEmailModel), [email] * count)
        await writer.execute(insert(AuditEventModel), [event | {"id": id_of(past)} for _ in range(count)])


async def test_however_many_rows_have_ended_all_of_them_go_in_batches(database: AsyncDatabaseManager) -> None:
    count = BATCH + 1
    await add_ended(database, count)

    with recorded_statements(database) as statements:
        purged = await purge(database, make_settings())

    assert purged == Purged(tokens=count, sessions=count, sign_ups=count, mails=count, events=count)
    deleted_from = Counter(statement.split()[2] for statement in statements if statement.startswith("DELETE"))
    tables = ("user_tokens", "sessions", "users", "outbox_emails", "audit_events")
    assert deleted_from == dict.fromkeys(tables, 2) | {"rate_limits": 1}


@pytest.mark.slow
async def test_more_than_are_found_at_once_all_go(
    database: AsyncDatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.services.purge.FOUND_AT_ONCE", 10)
    await add_ended(database, 25)

    assert await purge(database, make_settings()) == Purged(25, 25, 25, 25, 25)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_writer_who_waits_gets_its_turn_between_two_batches(database: AsyncDatabaseManager) -> None:
    await add_ended(database, 2 * BATCH)

    async with writing(database):
        purging = asyncio.create_task(purge(database, make_settings()))
        while not has_waiter(database.write_lock):
            await asyncio.sleep(0.01)
        counting = asyncio.create_task(count_tokens_as_a_writer(database))
        await asyncio.sleep(0)  # it waits behind the first batch

    assert await counting == BATCH
    assert (await purging).tokens == 2 * BATCH


def has_waiter(lock: asyncio.Lock) -> bool:
    return "waiters:" in repr(lock)


async def count_tokens_as_a_writer(database: AsyncDatabaseManager) -> int:
    async with writing(database) as writer:
        return await UserTokenRepository(writer).count()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_events_of_somebody_who_is_being_deleted_are_not_waited_for(
    service: Service, database: AsyncDatabaseManager
) -> None:
    user_id = UUID(await create_account(service))
    await post_log_in(service, "ghost@example.com")
    async with database.session() as deleting:
        for event in await deleting.scalars(select(AuditEventModel)):
            event.id = id_of(utc_now() - timedelta(days=366))
        await deleting.commit()
        await deleting.execute(delete(UserModel).where(UserModel.id == user_id))

        async with asyncio.timeout(10):
            purged = await purge(database, make_settings())

        await deleting.commit()
    assert purged.events == 1
    assert (await purge(database, make_settings())).events == 2


async def test_a_sign_up_that_is_forgotten_is_taken_out_of_its_events(
    service: Service, database: AsyncDatabaseManager
) -> None:
    await sign_up(service)
    await age_users(database, hours=49)

    await purge(database, make_settings())

    async with database.session() as session:
        event = await AuditEventRepository(session).get({"kind": "sign_up"})
        assert (event.user_id, event.actor_id, event.origin) == (None, None, None)


@pytest.mark.slow
async def test_purges_and_activations_at_once_end_without_an_error(
    service: Service, database: AsyncDatabaseManager
) -> None:
    over = [token_of((await sign_up(service))["activation_url"]) for _ in range(5)]
    await age_users(database, hours=49)
    await expire_links(database)
    live = [token_of((await sign_up(service))["activation_url"]) for _ in range(5)]

    purging = [asyncio.create_task(purge(database, make_settings())) for _ in range(5)]
    responses = await asyncio.gather(*(activate(service, token, password=NEW_PASSWORD) for token in over + live))
    await asyncio.gather(*purging)

    assert sorted(response.status_code for response in responses) == [200] + [400] * 9


async def test_a_session_that_has_ended_is_kept_as_long_as_it_tells_where_its_user_is(
    service: Service, database: AsyncDatabaseManager
) -> None:
    await create_account(service)
    await log_out(service, await log_in(service))

    assert await purge(database, make_settings()) == Purged()

    await execute(database, update(SessionModel).values(last_used_at=utc_now() - timedelta(days=31)))
    assert await purge(database, make_settings()) == Purged(sessions=1)


async def test_limits_that_nobody_is_near_are_forgotten(service: Service, database: AsyncDatabaseManager) -> None:
    for number in range(3):
        await post_log_in(service, f"{number}@example.com")
    is_of_an_account = rate_limits.c.period == 3600
    await execute(database, rate_limits.update().where(~is_of_an_account).values(tat=0))

    await purge(database, make_settings())

    async with database.session() as session:
        assert (await session.scalars(select(rate_limits.c.period))).all() == [3600] * 3


async def test_a_set_up_of_a_second_factor_is_forgotten_after_ten_minutes_unless_it_is_confirmed(
    service: Service, database: AsyncDatabaseManager
) -> None:
    await create_account(service)
    await begin_set_up(service, await log_in(service))
    bob = await create_account(service, "bob@example.com")
    await add_second_factor(service, bob)
    await execute(database, update(SecondFactorModel).values(created_at=utc_now() - timedelta(minutes=10)))

    await purge(database, make_settings())

    async with database.session() as session:
        assert (await session.scalars(select(SecondFactorModel.user_id))).all() == [UUID(bob)]
