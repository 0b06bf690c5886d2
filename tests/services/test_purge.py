"""The purge forgets what has ended, and nothing else."""

import asyncio
from datetime import timedelta

from sqlalchemy import update

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel, UserTokenModel
from src.db.repositories import SessionRepository, UserRepository, UserTokenRepository
from src.services.purge import Purged, purge
from tests.conftest import Service, make_settings
from tests.steps import activate, create_account, expire_links, log_in, me, sign_up, token_of

LONG_AGO = timedelta(days=3)


async def age_users(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        await session.execute(update(UserModel).values(created_at=utc_now() - LONG_AGO))
        await session.commit()


async def test_what_is_alive_stays(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account(service)
    who = await log_in(service)
    waiting = await sign_up(service, "waiting@example.com")
    await age_users(database)

    assert await purge(database, make_settings()) == Purged(tokens=0, sessions=0, sign_ups=0, mails=0, events=0)

    assert (await me(service, who)).status_code == 200
    assert (await activate(service, token_of(waiting["activation_url"]))).status_code == 200


async def test_a_sign_up_is_forgotten_when_its_last_link_has_expired(
    service: Service, database: AsyncDatabaseManager
) -> None:
    account = await create_account(service)
    await sign_up(service, "waiting@example.com")
    await age_users(database)
    await expire_links(database)

    assert await purge(database, make_settings()) == Purged(tokens=1, sessions=0, sign_ups=1, mails=0, events=0)

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


async def test_purges_and_activations_at_once_end_without_an_error(
    service: Service, database: AsyncDatabaseManager
) -> None:
    tokens = [token_of((await sign_up(service))["activation_url"]) for _ in range(10)]
    await age_users(database)
    async with database.session() as session:
        ids = [row.id for row in await UserTokenRepository(session).list()][::2]
        past = utc_now() - timedelta(seconds=1)
        await session.execute(update(UserTokenModel).where(UserTokenModel.id.in_(ids)).values(expires_at=past))
        await session.commit()

    purging = [asyncio.create_task(purge(database, make_settings())) for _ in range(5)]
    responses = await asyncio.gather(*(activate(service, token) for token in tokens))
    await asyncio.gather(*purging)

    assert sorted(response.status_code for response in responses) == [200] + [400] * 9
