"""The purge forgets what has ended, and nothing else."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import delete, insert, select, update

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import AuditEventModel, SessionModel, UserModel
from src.db.repositories import AuditEventRepository, SessionRepository, UserRepository, UserTokenRepository
from src.services.purge import EVENTS_AT_ONCE, Purged, purge
from tests.support.factories import age_users, expire_links
from tests.support.service import MailingService, Service, make_settings
from tests.support.steps import (
    NEW_PASSWORD,
    activate,
    create_account,
    log_in,
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

    assert await purge(database, make_settings()) == Purged(tokens=0, sessions=0, sign_ups=0, mails=0, events=0)

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

    assert await purge(database, make_settings()) == Purged(tokens=0, sessions=0, sign_ups=1, mails=0, events=0)

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
                await session.execute(update(SessionModel).where(SessionModel.id == newest.id).values({ending: past}))
                await session.commit()

    assert await purge(database, make_settings()) == Purged(tokens=0, sessions=3, sign_ups=0, mails=0, events=0)

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
        for id_, seconds in ((old, 99), (older, 101)):
            aged = utc_now() - timedelta(seconds=seconds)
            await session.execute(update(AuditEventModel).where(AuditEventModel.id == id_).values(created_at=aged))
        await session.commit()

    purged = await purge(database, make_settings(audit_retention_seconds=100))

    assert purged == Purged(tokens=0, sessions=0, sign_ups=0, mails=0, events=1)
    async with database.session() as session:
        assert not await AuditEventRepository(session).exists({"id": older})
        assert await AuditEventRepository(session).count() == 2


async def test_however_many_events_are_old_all_of_them_go(database: AsyncDatabaseManager) -> None:
    event = {"kind": "log_in", "outcome": "failure", "created_at": utc_now() - timedelta(days=366)}
    async with database.session() as session:
        await session.execute(insert(AuditEventModel), [event] * (EVENTS_AT_ONCE + 1))
        await session.commit()

    assert (await purge(database, make_settings())).events == EVENTS_AT_ONCE + 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_events_of_somebody_who_is_being_deleted_are_not_waited_for(
    service: Service, database: AsyncDatabaseManager
) -> None:
    user_id = UUID(await create_account(service))
    await post_log_in(service, "ghost@example.com")
    async with database.session() as deleting:
        await deleting.execute(update(AuditEventModel).values(created_at=utc_now() - timedelta(days=366)))
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
