"""Locks are taken in one order, so that transactions that meet wait, and never end in a deadlock: advisory locks, users
by their ids, tokens, sessions. Only PostgreSQL has such locks."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from httpx import Response
from sqlalchemy import select, update

from src.core.kinds import TokenPurpose
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel
from src.db.unit_of_work import open_unit_of_work
from src.services.purge import purge
from tests.support.databases import execute, wait_until_blocked, writing
from tests.support.service import Service, make_settings
from tests.support.steps import LoggedIn, create_account, create_admin, log_in, patch_user

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


async def invite_admin(service: Service, who: LoggedIn) -> Response:
    body = {"email": "invited@example.com", "is_admin": True}
    return await service.client.post("/api/users", json=body, headers=who.bearer)


async def test_an_administrator_who_is_demoted_while_they_invite_somebody_again(
    service: Service, database: AsyncDatabaseManager
) -> None:
    ana = await create_admin(service, "ana@example.com")
    assert (await invite_admin(service, ana)).status_code == 201
    bob = await create_admin(service, "bob@example.com")

    async with writing(database) as holding:
        await holding.execute(select(UserModel.id).where(UserModel.id == UUID(bob.user_id)).with_for_update())
        demoting = asyncio.create_task(patch_user(service, ana, bob.user_id, is_admin=False))
        await wait_until_blocked(service.database)
        inviting = asyncio.create_task(invite_admin(service, bob))
        await wait_until_blocked(service.database, 2)

    assert ((await demoting).status_code, (await inviting).status_code) == (200, 403)


async def test_a_session_that_is_forgotten_while_its_user_confirms_the_change_it_asked_for(
    service: Service, database: AsyncDatabaseManager
) -> None:
    user_id = UUID(await create_account(service))
    await log_in(service)
    async with open_unit_of_work(database) as uow:
        await uow.begin()
        [session] = await uow.sessions.list()
        token = await uow.tokens.issue(
            user_id,
            TokenPurpose.EMAIL_CHANGE,
            expires_at=utc_now() + timedelta(days=1),
            new_email="new@example.com",
            session_id=session.id,
        )
        await uow.commit()
    long_ago = utc_now() - timedelta(days=31)
    await execute(database, update(SessionModel).values(idle_expires_at=long_ago, last_used_at=long_ago))

    async with open_unit_of_work(database) as confirming:
        await confirming.begin()
        await confirming.users.lock_users(user_id)
        await confirming.tokens.consume(token, TokenPurpose.EMAIL_CHANGE)
        purging = asyncio.create_task(purge(service.database, make_settings()))
        await asyncio.wait([purging], timeout=0.5)  # it waits for the token, if it has locked the session
        await confirming.sessions.revoke_all(user_id)
        await confirming.commit()

    assert (await purging).sessions == 0
    assert (await purge(database, make_settings())).sessions == 1
