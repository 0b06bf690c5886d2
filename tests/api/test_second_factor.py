"""Setting a second factor up, keeping recovery codes, removing it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from httpx import Response
from sqlalchemy import Select, func, select, update

from src.core.limits import Rate
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import RecoveryCodeModel, SecondFactorModel, SessionModel, UserModel
from src.services.purge import purge
from tests.support.databases import dump, execute, wait_until_blocked, writing
from tests.support.hashing import CountingPool, count_hashes, hold, start_waiting
from tests.support.second_factor import (
    add_second_factor,
    age_proofs,
    begin_log_in,
    begin_set_up,
    code_of,
    confirm_set_up,
    post_code,
    post_set_up,
    prove_by_code,
    remove_factor,
    renew_codes,
    set_up,
)
from tests.support.service import MailingService, Service, StartService
from tests.support.steps import (
    LoggedIn,
    create_account,
    log_in,
    log_out,
    me,
    post_log_in,
    refresh,
    refusal,
)


async def create_ana(service: Service) -> LoggedIn:
    await create_account(service)
    return await log_in(service)


async def state(service: Service, who: LoggedIn) -> dict[str, object]:
    shown: dict[str, object] = (await me(service, who)).json()["second_factor"]
    return shown


async def count_codes(database: AsyncDatabaseManager) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(RecoveryCodeModel))).one()


async def test_a_set_up_begins_with_what_an_app_needs(service: Service) -> None:
    ana = await create_ana(service)

    response = await post_set_up(service, ana)

    body = response.json()
    uri = urlsplit(body["otpauth_uri"])
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
    assert (uri.scheme, uri.netloc, uri.path) == ("otpauth", "totp", "/localhost:ana%40example.com")
    assert parse_qs(uri.query) == {"secret": [body["secret"]], "issuer": ["localhost"]}
    assert body["qr_code"].startswith("<svg")


async def test_nobody_is_asked_for_a_code_before_one_was_confirmed(service: Service) -> None:
    ana = await create_ana(service)
    await begin_set_up(service, ana)

    assert (await post_log_in(service)).status_code == 200
    assert await state(service, ana) == {"is_set": False, "recovery_codes_left": 0}


async def test_a_confirmed_factor_is_asked_for_and_gives_ten_recovery_codes(service: Service) -> None:
    ana = await create_ana(service)

    _, codes = await set_up(service, ana)

    assert len(set(codes)) == 10
    assert (await post_log_in(service)).json()["code"] == "SECOND_FACTOR_REQUIRED"
    assert await state(service, ana) == {"is_set": True, "recovery_codes_left": 10}


async def test_the_code_that_confirms_works_at_no_log_in(service: Service) -> None:
    ana = await create_ana(service)
    secret = await begin_set_up(service, ana)
    code = code_of(secret)
    await confirm_set_up(service, ana, code)

    response = await post_code(service, await begin_log_in(service), code)

    assert refusal(response) == (401, "INVALID_CODE", [])


async def test_a_recovery_code_of_the_set_up_logs_in_and_one_less_is_left(service: Service) -> None:
    ana = await create_ana(service)
    _, codes = await set_up(service, ana)

    assert (await post_code(service, await begin_log_in(service), codes[3])).status_code == 200
    assert await state(service, ana) == {"is_set": True, "recovery_codes_left": 9}


async def test_the_other_sessions_end_and_the_owner_is_told(mailing_service: MailingService) -> None:
    await create_account(mailing_service)
    other, ana = await log_in(mailing_service), await log_in(mailing_service)

    await set_up(mailing_service, ana)

    assert (await refresh(mailing_service, other.refresh_token)).status_code == 401
    assert (await me(mailing_service, ana)).status_code == 200
    assert mailing_service.mailbox.messages[-1].subject == "A second factor was set up"


async def test_the_current_password_is_needed_to_begin(service: Service) -> None:
    ana = await create_ana(service)

    response = await post_set_up(service, ana, "a-wrong-password")

    assert refusal(response) == (403, "WRONG_PASSWORD", [])


async def test_beginning_again_makes_another_secret(service: Service) -> None:
    ana = await create_ana(service)
    first = await begin_set_up(service, ana)
    await begin_set_up(service, ana)

    assert refusal(await confirm_set_up(service, ana, code_of(first))) == (403, "WRONG_CODE", [])


async def test_a_factor_that_is_set_is_not_replaced(service: Service) -> None:
    ana = await create_ana(service)
    secret, _ = await set_up(service, ana)

    assert refusal(await post_set_up(service, ana)) == (409, "SECOND_FACTOR_SET", [])
    assert refusal(await confirm_set_up(service, ana, code_of(secret, 1))) == (409, "SECOND_FACTOR_SET", [])


async def test_where_a_factor_is_set_no_password_is_tried(service: Service) -> None:
    ana = await create_ana(service)
    await add_second_factor(service, ana.user_id)

    assert refusal(await post_set_up(service, ana, "a-wrong-password")) == (409, "SECOND_FACTOR_SET", [])


async def test_the_password_that_begins_a_set_up_is_a_fresh_proof(service: Service) -> None:
    ana = await create_ana(service)
    await age_proofs(service, minutes=16)

    secret = await begin_set_up(service, ana)

    assert (await confirm_set_up(service, ana, code_of(secret))).status_code == 200


async def test_a_set_up_waits_ten_minutes_and_is_purged_then(service: Service, database: AsyncDatabaseManager) -> None:
    ana = await create_ana(service)
    secret = await begin_set_up(service, ana)
    begun_at = utc_now() - timedelta(minutes=10, seconds=1)
    await execute(database, update(SecondFactorModel).values(created_at=begun_at))

    response = await confirm_set_up(service, ana, code_of(secret))
    await purge(database, service.settings)

    assert refusal(response) == (409, "SECOND_FACTOR_NOT_SET", [])
    async with database.session() as session:
        assert (await session.scalars(select(SecondFactorModel))).all() == []


async def test_the_eleventh_wrong_code_is_refused(service: Service) -> None:
    ana = await create_ana(service)
    await begin_set_up(service, ana)

    responses = [await confirm_set_up(service, ana, "no code at all") for _ in range(11)]

    assert [each.status_code for each in responses] == [403] * 10 + [429]


async def test_a_right_code_counts_for_nothing(start_service: StartService) -> None:
    service = await start_service(rate_limit_codes_per_account=Rate(1, 3600))
    ana = await create_ana(service)
    await set_up(service, ana)
    await remove_factor(service, ana)
    await begin_set_up(service, ana)

    responses = [await confirm_set_up(service, ana, "no code at all") for _ in range(2)]

    assert [each.status_code for each in responses] == [403, 429]


async def test_confirming_needs_a_fresh_proof(service: Service) -> None:
    ana = await create_ana(service)
    secret = await begin_set_up(service, ana)
    await age_proofs(service, minutes=16)

    response = await confirm_set_up(service, ana, code_of(secret))

    assert refusal(response) == (403, "REAUTHENTICATION_REQUIRED", [])


async def test_new_recovery_codes_end_those_from_before(mailing_service: MailingService) -> None:
    ana = await create_ana(mailing_service)
    _, old = await set_up(mailing_service, ana)

    response = await renew_codes(mailing_service, ana)

    new = response.json()["recovery_codes"]
    assert (response.status_code, len(set(new) - set(old))) == (200, 10)
    assert mailing_service.mailbox.messages[-1].subject == "Your recovery codes were made anew"
    assert (await post_code(mailing_service, await begin_log_in(mailing_service), old[0])).status_code == 401
    assert (await post_code(mailing_service, await begin_log_in(mailing_service), new[0])).status_code == 200


async def test_a_factor_that_is_removed_is_asked_for_no_more(mailing_service: MailingService) -> None:
    ana = await create_ana(mailing_service)
    await set_up(mailing_service, ana)

    response = await remove_factor(mailing_service, ana)

    assert response.status_code == 204
    assert mailing_service.mailbox.messages[-1].subject == "Your second factor was removed"
    assert (await post_log_in(mailing_service)).status_code == 200
    assert await state(mailing_service, ana) == {"is_set": False, "recovery_codes_left": 0}


@pytest.mark.parametrize("change", [renew_codes, remove_factor])
async def test_the_password_alone_does_not_change_a_factor_that_is_set(
    service: Service, change: Callable[[Service, LoggedIn], Awaitable[Response]]
) -> None:
    """Or who has taken over a session, and knows the password, would get rid of it."""
    ana = await create_ana(service)
    await add_second_factor(service, ana.user_id)

    assert refusal(await change(service, ana)) == (403, "REAUTHENTICATION_REQUIRED", [])
    assert (await state(service, ana))["is_set"] is True


async def test_a_code_of_long_ago_does_not_remove_the_factor(service: Service) -> None:
    ana = await create_ana(service)
    await set_up(service, ana)
    await age_proofs(service, minutes=16)

    assert refusal(await remove_factor(service, ana)) == (403, "REAUTHENTICATION_REQUIRED", [])


# --- races ---


@asynccontextmanager
async def held_hashes(service: Service) -> AsyncGenerator[CountingPool, None]:
    """Meanwhile nothing is hashed."""
    pool = count_hashes(service)
    gate = asyncio.get_running_loop().create_future()
    holding = await hold(pool, gate, jobs=3)
    yield pool
    gate.set_result(None)
    await asyncio.gather(*holding)


def lock_of(who: LoggedIn) -> Select[UUID]:
    return select(UserModel.id).where(UserModel.id == UUID(who.user_id)).with_for_update()


@pytest.mark.slow
async def test_of_two_who_confirm_with_one_code_one_gets_recovery_codes(
    service: Service, database: AsyncDatabaseManager
) -> None:
    ana = await create_ana(service)
    code = code_of(await begin_set_up(service, ana))

    responses = await asyncio.gather(*(confirm_set_up(service, ana, code) for _ in range(8)))

    assert sorted(each.status_code for each in responses) == [200] + [409] * 7
    assert await count_codes(database) == 10


@pytest.mark.slow
async def test_renewals_at_once_leave_ten_codes(service: Service, database: AsyncDatabaseManager) -> None:
    ana = await create_ana(service)
    await set_up(service, ana)

    responses = await asyncio.gather(*(renew_codes(service, ana) for _ in range(8)))

    assert {each.status_code for each in responses} == {200}
    assert await count_codes(database) == 10


@pytest.mark.slow
async def test_a_set_up_that_begins_while_another_is_confirmed_does_not_take_its_place(service: Service) -> None:
    ana = await create_ana(service)
    code = code_of(await begin_set_up(service, ana))
    async with held_hashes(service) as pool:
        beginning = await start_waiting(pool, post_set_up(service, ana))
        confirmed = await confirm_set_up(service, ana, code)

    assert confirmed.status_code == 200
    assert refusal(await beginning) == (409, "SECOND_FACTOR_SET", [])
    assert await state(service, ana) == {"is_set": True, "recovery_codes_left": 10}


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_code_does_not_confirm_the_secret_of_a_set_up_that_began_meanwhile(
    service: Service, database: AsyncDatabaseManager
) -> None:
    ana = await create_ana(service)
    code = code_of(await begin_set_up(service, ana))
    async with writing(database) as holding:
        await holding.execute(lock_of(ana))
        beginning = asyncio.create_task(post_set_up(service, ana))
        await wait_until_blocked(service.database)
        confirming = asyncio.create_task(confirm_set_up(service, ana, code))
        await wait_until_blocked(service.database, 2)

    assert (await beginning).status_code == 200
    assert refusal(await confirming) == (403, "WRONG_CODE", [])


@pytest.mark.slow
async def test_a_session_that_ends_while_the_password_is_verified_begins_no_set_up(
    service: Service, database: AsyncDatabaseManager
) -> None:
    ana = await create_ana(service)
    async with held_hashes(service) as pool:
        beginning = await start_waiting(pool, post_set_up(service, ana))
        await log_out(service, ana)

    assert refusal(await beginning) == (401, "INVALID_ACCESS_TOKEN", [])
    async with database.session() as session:
        assert (await session.scalars(select(SecondFactorModel))).all() == []


@pytest.mark.slow
@pytest.mark.parametrize("act", ["confirm", "renew", "remove"])
async def test_a_session_that_ends_meanwhile_changes_nothing(
    service: Service, database: AsyncDatabaseManager, act: str
) -> None:
    ana = await create_ana(service)
    if act == "confirm":
        request = confirm_set_up(service, ana, code_of(await begin_set_up(service, ana)))
    else:
        await set_up(service, ana)
        request = renew_codes(service, ana) if act == "renew" else remove_factor(service, ana)
    before = await count_codes(database)
    async with writing(database) as revoking:
        await revoking.execute(lock_of(ana))
        asking = asyncio.create_task(request)
        await asyncio.wait([asking], timeout=0.3)  # its token is read; it waits to write
        await revoking.execute(update(SessionModel).values(revoked_at=utc_now()))

    assert refusal(await asking) == (401, "INVALID_ACCESS_TOKEN", [])
    assert await count_codes(database) == before


# --- secrets ---


async def test_secrets_and_codes_are_in_no_log_event_row_or_email(
    mailing_service: MailingService, database: AsyncDatabaseManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    ana = await create_ana(mailing_service)
    begun = (await post_set_up(mailing_service, ana)).json()
    code = code_of(begun["secret"])
    codes = (await confirm_set_up(mailing_service, ana, code)).json()["recovery_codes"]
    await post_code(mailing_service, await begin_log_in(mailing_service), codes[0])
    await post_code(mailing_service, await begin_log_in(mailing_service), codes[0])
    await prove_by_code(mailing_service, ana)
    codes += (await renew_codes(mailing_service, ana)).json()["recovery_codes"]

    emails = "".join(each.text + each.html for each in mailing_service.mailbox.messages)
    seen = await dump(database) + caplog.text + emails
    letters = [each.replace("-", "").upper() for each in codes]
    secrets = [begun["secret"], begun["otpauth_uri"], begun["qr_code"], *codes, *letters]
    assert [secret for secret in secrets if secret in seen or secret.lower() in seen] == []
