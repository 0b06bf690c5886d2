"""Logging in where the account has a second factor: the password, and then a code."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

import jwt
import pytest
from httpx import Response
from sqlalchemy import delete, func, select, update

from src.core.limits import Rate
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import RecoveryCodeModel, SecondFactorModel, SessionModel, UserModel, UserTokenModel
from tests.support.databases import execute, read_all_but_events, recorded_statements
from tests.support.factories import expire_links
from tests.support.hashing import count_hashes, hold, start_waiting
from tests.support.second_factor import (
    add_recovery_codes,
    add_second_factor,
    begin_log_in,
    code_of,
    post_code,
)
from tests.support.service import MailingService, Service, StartService
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    LoggedIn,
    change_password,
    confirm_move,
    create_account,
    create_admin,
    leave,
    log_in,
    me,
    patch_user,
    post_log_in,
    read_tokens,
    refusal,
    request_move,
    request_reset,
    reset,
    token_of,
)

Refusal = tuple[int, str, list[str]]

WRONG_CODE: Refusal = (401, "INVALID_CODE", [])
INVALID_TOKEN: Refusal = (401, "INVALID_SECOND_FACTOR_TOKEN", [])
CODE_REQUIRED: Refusal = (403, "SECOND_FACTOR_REQUIRED", [])
TOO_MANY: Refusal = (429, "TOO_MANY_REQUESTS", [])


async def create_account_with_factor(service: Service) -> str:
    """Ana's; the secret that her app has."""
    return await add_second_factor(service, await create_account(service))


async def guess_code(service: Service, token: str) -> Response:
    return await post_code(service, token, "no code at all")


async def count_sessions(database: AsyncDatabaseManager) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(SessionModel))).one()


async def count_recovery_codes(database: AsyncDatabaseManager) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(RecoveryCodeModel))).one()


# --- the two steps ---


async def test_a_right_password_is_told_how_to_go_on(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account_with_factor(service)

    response = await post_log_in(service)

    assert refusal(response) == CODE_REQUIRED
    details = response.json()["details"]
    assert len(details.pop("second_factor_token")) == 43
    assert details == {"expires_in": 300, "methods": ["totp", "recovery_code"]}
    assert await count_sessions(database) == 0


async def test_a_right_password_alone_changes_nothing(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    await create_account_with_factor(await start_service())
    service = await start_service(auth_bcrypt_rounds=5)  # it would upgrade the hash
    before = await read_all_but_events(database)

    await begin_log_in(service)

    after = await read_all_but_events(database)
    assert {name for name in after if after[name] != before[name]} == {"user_tokens"}


async def test_a_code_starts_the_session(service: Service) -> None:
    secret = await create_account_with_factor(service)

    who = read_tokens(await post_code(service, await begin_log_in(service), code_of(secret)))

    assert (await me(service, who)).json()["last_login_at"]
    claims = jwt.decode(who.access_token, options={"verify_signature": False})
    assert claims["amr"] == ["pwd", "otp", "mfa"]


async def test_a_set_up_that_has_only_begun_asks_for_no_code(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account_with_factor(service)
    await execute(database, update(SecondFactorModel).values(confirmed_at=None))

    assert (await post_log_in(service)).status_code == 200


async def test_a_wrong_password_is_not_told_of_the_factor(service: Service) -> None:
    await create_account_with_factor(service)

    assert refusal(await post_log_in(service, password="a-wrong-password")) == (401, "INVALID_CREDENTIALS", [])


async def test_nobody_looks_for_a_factor_before_the_password_was_right(service: Service) -> None:
    await create_account_with_factor(service)

    with recorded_statements(service.database) as statements:
        await post_log_in(service, password="a-wrong-password")

    assert statements
    assert not [statement for statement in statements if "second_factors" in statement]


# --- the token between the steps ---


async def test_a_token_works_once(service: Service) -> None:
    secret = await create_account_with_factor(service)
    token = await begin_log_in(service)
    await post_code(service, token, code_of(secret))

    assert refusal(await post_code(service, token, code_of(secret, 1))) == INVALID_TOKEN


async def test_an_expired_token_is_refused(service: Service, database: AsyncDatabaseManager) -> None:
    secret = await create_account_with_factor(service)
    token = await begin_log_in(service)
    await expire_links(database)

    assert refusal(await post_code(service, token, code_of(secret))) == INVALID_TOKEN


async def test_a_token_lasts_for_five_minutes(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account_with_factor(service)

    await begin_log_in(service)

    async with database.session() as session:
        token = (await session.scalars(select(UserTokenModel))).one()
    assert timedelta(seconds=295) < token.expires_at - utc_now() <= timedelta(minutes=5)


async def test_a_mailed_link_is_no_such_token(start_service: StartService) -> None:
    service = await start_service(auth_return_token_in_response=True)
    secret = await create_account_with_factor(service)
    link = (await request_reset(service)).json()["reset_url"]

    assert refusal(await post_code(service, token_of(link), code_of(secret))) == INVALID_TOKEN


async def test_another_log_in_that_begins_does_not_end_the_first(service: Service) -> None:
    secret = await create_account_with_factor(service)
    first, _ = await begin_log_in(service), await begin_log_in(service)

    assert (await post_code(service, first, code_of(secret))).status_code == 200


async def test_a_log_in_that_is_finished_ends_the_others_that_wait(service: Service) -> None:
    secret = await create_account_with_factor(service)
    first, second = await begin_log_in(service), await begin_log_in(service)
    await post_code(service, first, code_of(secret))

    assert refusal(await post_code(service, second, code_of(secret, 1))) == INVALID_TOKEN


async def reset_it(service: Service, _: LoggedIn) -> Response:
    return await reset(service, token_of((await request_reset(service)).json()["reset_url"]))


async def move_it(service: Service, ana: LoggedIn) -> Response:
    return await confirm_move(service, token_of((await request_move(service, ana)).json()["email_change_url"]))


async def disable_and_enable_it(service: Service, ana: LoggedIn) -> Response:
    admin = await create_admin(service)
    await patch_user(service, admin, ana.user_id, is_active=False)
    return await patch_user(service, admin, ana.user_id, is_active=True)


@pytest.mark.parametrize("change", [change_password, reset_it, move_it, disable_and_enable_it, leave])
async def test_a_token_ends_with_the_credentials_that_it_stands_for(
    start_service: StartService, change: Callable[[Service, LoggedIn], Awaitable[Response]]
) -> None:
    service = await start_service(auth_return_token_in_response=True)
    user_id = await create_account(service)
    ana = await log_in(service)
    secret = await add_second_factor(service, user_id)
    await execute(service.database, update(SessionModel).values(second_factor_at=utc_now()))
    token = await begin_log_in(service)

    assert (await change(service, ana)).is_success

    assert refusal(await post_code(service, token, code_of(secret))) == INVALID_TOKEN


async def test_a_token_is_no_good_without_a_factor(service: Service, database: AsyncDatabaseManager) -> None:
    secret = await create_account_with_factor(service)
    token = await begin_log_in(service)
    await execute(database, delete(SecondFactorModel))

    assert refusal(await post_code(service, token, code_of(secret))) == INVALID_TOKEN


async def test_who_is_disabled_in_the_database_gets_no_session(
    service: Service, database: AsyncDatabaseManager
) -> None:
    secret = await create_account_with_factor(service)
    token = await begin_log_in(service)
    await execute(database, update(UserModel).values(is_active=False))

    assert refusal(await post_code(service, token, code_of(secret))) == INVALID_TOKEN


async def test_a_password_that_is_reset_while_it_is_hashed_begins_nothing(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service, other = [await start_service(auth_return_token_in_response=True) for _ in range(2)]
    await create_account_with_factor(service)
    link = token_of((await request_reset(other)).json()["reset_url"])
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pool = count_hashes(service)
    holding = await hold(pool, gate, jobs=2)
    logging_in = await start_waiting(pool, post_log_in(service))

    await reset(other, link)
    gate.set_result(None)

    assert refusal(await logging_in) == (401, "INVALID_CREDENTIALS", [])
    assert (await read_all_but_events(database))["user_tokens"] == []
    await asyncio.gather(*holding)


# --- codes ---


async def test_a_wrong_code_leaves_the_token_for_another_try(service: Service, database: AsyncDatabaseManager) -> None:
    secret = await create_account_with_factor(service)
    token = await begin_log_in(service)

    assert refusal(await guess_code(service, token)) == WRONG_CODE
    assert await count_sessions(database) == 0
    assert (await post_code(service, token, code_of(secret))).status_code == 200


async def test_the_fifth_wrong_code_ends_the_token(service: Service) -> None:
    secret = await create_account_with_factor(service)
    token = await begin_log_in(service)

    wrong = [refusal(await guess_code(service, token)) for _ in range(5)]

    assert wrong == [WRONG_CODE] * 5
    assert refusal(await post_code(service, token, code_of(secret))) == INVALID_TOKEN


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1])
async def test_a_code_that_is_not_newer_than_the_last_is_refused(service: Service, offset: int) -> None:
    secret = await create_account_with_factor(service)
    code, last = code_of(secret, offset), code_of(secret, 1)
    await post_code(service, await begin_log_in(service), last)

    assert refusal(await post_code(service, await begin_log_in(service), code)) == WRONG_CODE


def in_capitals_without_dashes(code: str) -> str:
    return code.replace("-", "").upper()


def with_spaces(code: str) -> str:
    return f" {code.replace('-', ' ')} "


@pytest.mark.parametrize("typed", [str, in_capitals_without_dashes, with_spaces])
async def test_a_recovery_code_works_once_however_it_is_typed(service: Service, typed: Callable[[str], str]) -> None:
    user_id = await create_account(service)
    await add_second_factor(service, user_id)
    code, *_ = await add_recovery_codes(service, user_id)

    first = await post_code(service, await begin_log_in(service), typed(code))
    again = await post_code(service, await begin_log_in(service), code)

    assert (first.status_code, refusal(again)) == (200, WRONG_CODE)


async def test_the_owner_is_told_of_a_recovery_code_and_how_many_are_left(mailing_service: MailingService) -> None:
    user_id = await create_account(mailing_service)
    await add_second_factor(mailing_service, user_id)
    code, *_ = await add_recovery_codes(mailing_service, user_id)

    await post_code(mailing_service, await begin_log_in(mailing_service), code)

    message = mailing_service.mailbox.messages[-1]
    assert message.to == "ana@example.com"
    assert "9" in message.text


@pytest.mark.slow
async def test_of_many_who_use_one_code_at_once_one_gets_in(start_service: StartService) -> None:
    workers = [await start_service(), await start_service()]
    secret = await create_account_with_factor(workers[0])
    tokens = [await begin_log_in(workers[0]) for _ in range(8)]

    responses = await asyncio.gather(
        *(post_code(workers[number % 2], token, code_of(secret)) for number, token in enumerate(tokens))
    )

    assert Counter(each.status_code for each in responses) == {200: 1, 401: 7}


@pytest.mark.slow
async def test_of_many_who_use_one_token_at_once_one_gets_in_and_uses_up_a_code(start_service: StartService) -> None:
    workers = [await start_service(), await start_service()]
    user_id = await create_account(workers[0])
    await add_second_factor(workers[0], user_id)
    codes, token = await add_recovery_codes(workers[0], user_id), await begin_log_in(workers[0])

    responses = await asyncio.gather(
        *(post_code(workers[number % 2], token, code) for number, code in enumerate(codes))
    )

    assert Counter(each.status_code for each in responses) == {200: 1, 401: 9}
    assert await count_recovery_codes(workers[0].database) == 9


@pytest.mark.slow
async def test_no_session_outlives_a_reset_that_came_meanwhile(start_service: StartService) -> None:
    service, other = [await start_service(auth_return_token_in_response=True) for _ in range(2)]
    user_id = await create_account(service)
    await add_second_factor(service, user_id)
    password = PASSWORD
    for code in await add_recovery_codes(service, user_id):
        token = await begin_log_in(service, password=password)
        link = token_of((await request_reset(other)).json()["reset_url"])
        password = f"{NEW_PASSWORD}-{code}"

        logged_in, was_reset = await asyncio.gather(post_code(service, token, code), reset(other, link, password))

        assert was_reset.status_code == 204
        if logged_in.is_success:
            assert (await me(service, read_tokens(logged_in))).status_code == 401
        else:
            assert refusal(logged_in) == INVALID_TOKEN


# --- limits ---


async def test_the_eleventh_wrong_code_is_refused_by_whichever_token(service: Service) -> None:
    await create_account_with_factor(service)

    refusals = [
        refusal(await guess_code(service, token))
        for token in [await begin_log_in(service) for _ in range(3)]
        for _ in range(5)
    ]

    assert refusals == [WRONG_CODE] * 10 + [TOO_MANY] * 5


async def test_log_ins_that_are_begun_and_not_finished_are_limited(service: Service) -> None:
    await create_account_with_factor(service)

    refusals = [refusal(await post_log_in(service)) for _ in range(11)]

    assert refusals == [CODE_REQUIRED] * 10 + [TOO_MANY]


async def test_log_ins_that_are_finished_are_not_counted(start_service: StartService) -> None:
    two = Rate.parse("2/1h")
    service = await start_service(
        rate_limit_failures_per_account_and_origin=two,
        rate_limit_failures_per_account=two,
        rate_limit_codes_per_account=two,
    )
    user_id = await create_account(service)
    await add_second_factor(service, user_id)

    for code in (await add_recovery_codes(service, user_id))[:4]:
        assert (await post_code(service, await begin_log_in(service), code)).status_code == 200


async def test_guesses_at_tokens_are_limited_by_origin(start_service: StartService) -> None:
    service = await start_service(rate_limit_requests_per_origin=Rate.parse("2/1h"))

    refusals = [refusal(await post_code(service, "t", "123456")) for _ in range(3)]

    assert refusals == [INVALID_TOKEN] * 2 + [TOO_MANY]


@pytest.mark.slow
async def test_of_many_random_codes_at_once_ten_are_tried(start_service: StartService) -> None:
    workers = [await start_service(), await start_service()]
    await create_account_with_factor(workers[0])
    tokens = [await begin_log_in(workers[0]) for _ in range(10)]
    codes = [f"{secrets.randbelow(10**6):06}" for _ in range(200)]

    responses = await asyncio.gather(
        *(post_code(workers[number % 2], tokens[number % 10], code) for number, code in enumerate(codes))
    )

    refusals = [refusal(each) for each in responses]
    assert (refusals.count(WRONG_CODE), refusals.count(TOO_MANY)) == (10, 190)


# --- the form of OAuth ---


async def post_form(service: Service, password: str = PASSWORD, **form: str) -> Response:
    credentials = {"grant_type": "password", "username": "ana@example.com", "password": password}
    return await service.client.post("/auth/token", data=credentials | form)


async def test_the_password_grant_takes_the_code_as_well(service: Service) -> None:
    secret = await create_account_with_factor(service)

    response = await post_form(service, otp=code_of(secret))

    claims = jwt.decode(read_tokens(response).access_token, options={"verify_signature": False})
    assert claims["amr"] == ["pwd", "otp", "mfa"]


@pytest.mark.parametrize("form", [{}, {"otp": ""}])
async def test_the_password_grant_without_a_code_says_that_one_is_required(
    service: Service, form: dict[str, str]
) -> None:
    await create_account_with_factor(service)

    assert (await post_form(service, **form)).json()["code"] == "SECOND_FACTOR_REQUIRED"


async def test_wrong_codes_of_the_password_grant_are_counted_with_the_others(start_service: StartService) -> None:
    service = await start_service(rate_limit_codes_per_account=Rate.parse("2/1h"))
    secret = await create_account_with_factor(service)

    codes = [(await post_form(service, otp="000")).json()["code"] for _ in range(2)]

    assert codes == ["INVALID_CODE"] * 2
    assert (await post_form(service, otp=code_of(secret))).json()["code"] == "TOO_MANY_REQUESTS"
    assert refusal(await guess_code(service, await begin_log_in(service))) == TOO_MANY


async def test_a_code_with_a_wrong_password_is_not_looked_at(service: Service) -> None:
    secret = await create_account_with_factor(service)

    wrong = await post_form(service, "a-wrong-password", otp=code_of(secret))

    assert wrong.json()["code"] == "INVALID_CREDENTIALS"
    assert (await post_form(service, otp=code_of(secret))).status_code == 200


async def test_a_code_of_who_has_no_factor_is_ignored(service: Service) -> None:
    await create_account(service)

    assert (await post_form(service, otp="123456")).status_code == 200


# --- the cookie ---


async def test_the_second_step_can_put_the_refresh_token_into_the_cookie(start_service: StartService) -> None:
    service = await start_service(auth_refresh_cookie=True)
    secret = await create_account_with_factor(service)

    response = await post_code(service, await begin_log_in(service), code_of(secret), use_cookie=True)

    assert response.json()["refresh_token"] is None
    assert response.headers["set-cookie"].startswith("__Host-refresh=ey")


async def test_a_foreign_origin_gets_no_cookie_and_uses_nothing_up(start_service: StartService) -> None:
    service = await start_service(auth_refresh_cookie=True)
    secret = await create_account_with_factor(service)
    body = {"second_factor_token": await begin_log_in(service), "code": code_of(secret)}
    foreign = {"Origin": "https://evil.example"}

    refused = await service.client.post("/auth/login/second-factor", json=body | {"use_cookie": True}, headers=foreign)

    assert refusal(refused) == (403, "FOREIGN_ORIGIN", [])
    assert (await service.client.post("/auth/login/second-factor", json=body)).status_code == 200
