"""What needs a recent proof of who acts, and how it is given: by the password, or by a code of the second factor."""

import asyncio
from collections.abc import Awaitable, Callable

import jwt
import pytest
from httpx import Response

from src.db import AsyncDatabaseManager
from tests.support.databases import read_all_but_events, read_tables
from tests.support.second_factor import (
    add_recovery_codes,
    add_second_factor,
    age_proofs,
    begin_log_in,
    code_of,
    post_code,
    prove_by_code,
    reauthenticate,
    remove_factor,
    reset_factor,
    set_up,
)
from tests.support.service import MailingService, Service, StartService
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    LoggedIn,
    change_password,
    create_account,
    create_admin,
    delete_user,
    log_in,
    log_out,
    me,
    patch_user,
    post_log_in,
    read_tokens,
    refresh,
    refusal,
    request_move,
    request_reset,
    reset,
    token_of,
)

Refusal = tuple[int, str, list[str]]

STALE: Refusal = (403, "REAUTHENTICATION_REQUIRED", [])
CODE_REQUIRED: Refusal = (403, "SECOND_FACTOR_REQUIRED", [])
WRONG_CODE: Refusal = (403, "WRONG_CODE", [])


async def create_ana_with_factor(service: Service) -> tuple[LoggedIn, str]:
    """Logged in before the factor was set; and its secret."""
    user_id = await create_account(service)
    ana = await log_in(service)
    return ana, await add_second_factor(service, user_id)


async def invite(service: Service, admin: LoggedIn, **body: object) -> Response:
    return await service.client.post("/api/users", json={"email": "new@example.com"} | body, headers=admin.bearer)


# --- what administrators do ---

Act = Callable[[Service, LoggedIn, str], Awaitable[Response]]

NEED_PROOF: dict[str, Act] = {
    "invite an administrator": lambda service, admin, _: invite(service, admin, is_admin=True),
    "promote": lambda service, admin, user_id: patch_user(service, admin, user_id, is_admin=True),
    "demote": lambda service, admin, user_id: patch_user(service, admin, user_id, is_admin=False),
    "disable": lambda service, admin, user_id: patch_user(service, admin, user_id, is_active=False),
    "delete": delete_user,
    "reset a factor": reset_factor,
}
NEED_NONE: dict[str, Act] = {
    "invite": lambda service, admin, _: invite(service, admin),
    "rename": lambda service, admin, user_id: patch_user(service, admin, user_id, name="Ana"),
    "enable": lambda service, admin, user_id: patch_user(service, admin, user_id, is_active=True),
    "log out": lambda service, admin, user_id: service.client.delete(
        f"/api/users/{user_id}/sessions", headers=admin.bearer
    ),
}


@pytest.mark.parametrize("act", NEED_PROOF.values(), ids=NEED_PROOF)
async def test_what_gives_or_takes_rights_needs_a_recent_proof(
    service: Service, database: AsyncDatabaseManager, act: Act
) -> None:
    admin, user_id = await create_admin(service), await create_account(service)
    await add_second_factor(service, user_id)
    await age_proofs(service, minutes=16)
    before = await read_all_but_events(database)

    refused = await act(service, admin, user_id)

    assert refusal(refused) == STALE
    assert await read_all_but_events(database) == before
    assert (await reauthenticate(service, admin, password=PASSWORD)).status_code == 204
    assert (await act(service, admin, user_id)).is_success


async def test_other_acts_need_none(service: Service) -> None:
    admin, user_id = await create_admin(service), await create_account(service)
    await age_proofs(service, minutes=16)

    assert {name: (await act(service, admin, user_id)).is_success for name, act in NEED_NONE.items()} == dict.fromkeys(
        NEED_NONE, True
    )


async def test_how_recent_is_a_setting(start_service: StartService) -> None:
    service = await start_service(auth_reauthentication_seconds=60)
    admin, user_id = await create_admin(service), await create_account(service)
    await age_proofs(service, seconds=61)

    assert refusal(await delete_user(service, admin, user_id)) == STALE


# --- /auth/reauthenticate ---


async def test_a_proof_holds_for_its_session_alone(service: Service) -> None:
    admin, user_id = await create_admin(service), await create_account(service)
    other = await log_in(service, "admin@example.com")
    await age_proofs(service, minutes=16)
    await reauthenticate(service, other, password=PASSWORD)

    assert refusal(await delete_user(service, admin, user_id)) == STALE


async def test_a_proof_by_code_is_told_in_the_next_access_token(service: Service) -> None:
    ana, secret = await create_ana_with_factor(service)

    assert (await reauthenticate(service, ana, code=code_of(secret))).status_code == 204

    token = (await refresh(service, ana.refresh_token)).json()["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["amr"] == ["pwd", "otp", "mfa"]


async def test_a_code_is_no_second_proof(service: Service) -> None:
    ana, secret = await create_ana_with_factor(service)
    code = code_of(secret)
    await reauthenticate(service, ana, code=code)

    assert refusal(await reauthenticate(service, ana, code=code)) == WRONG_CODE


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        ({"password": "a-wrong-password"}, (403, "WRONG_PASSWORD", [])),
        ({"code": "123456"}, (409, "SECOND_FACTOR_NOT_SET", [])),
        ({}, (422, "VALIDATION_ERROR", ["body"])),
        ({"password": PASSWORD, "code": "123456"}, (422, "VALIDATION_ERROR", ["body"])),
    ],
)
async def test_what_is_no_proof_is_refused(service: Service, proof: dict[str, str], expected: Refusal) -> None:
    await create_account(service)
    ana = await log_in(service)

    assert refusal(await reauthenticate(service, ana, **proof)) == expected


# --- password, address, leaving ---


async def change_with(service: Service, ana: LoggedIn, path: str, **body: str) -> Response:
    fields: dict[str, dict[str, str]] = {
        "/auth/password-change": {"new_password": NEW_PASSWORD},
        "/auth/email-change/request": {"new_email": "new@example.com"},
        "/auth/delete-account": {},
    }
    json = {"current_password": PASSWORD} | fields[path] | body
    return await service.client.post(path, json=json, headers=ana.bearer)


PATHS = ("/auth/password-change", "/auth/email-change/request", "/auth/delete-account")


@pytest.mark.parametrize("path", PATHS)
async def test_with_a_factor_the_password_is_not_enough(
    service: Service, database: AsyncDatabaseManager, path: str
) -> None:
    ana, secret = await create_ana_with_factor(service)
    before = await read_tables(database, lambda table: table.name in ("users", "user_tokens", "second_factors"))

    assert refusal(await change_with(service, ana, path)) == CODE_REQUIRED
    assert refusal(await change_with(service, ana, path, code="no code at all")) == WRONG_CODE
    assert await read_tables(database, lambda table: table.name in before) == before
    assert (await change_with(service, ana, path, code=code_of(secret))).is_success


async def test_a_recent_code_is_enough_and_an_old_one_is_not(service: Service) -> None:
    ana, _ = await create_ana_with_factor(service)
    await prove_by_code(service, ana)
    assert (await change_password(service, ana)).status_code == 204

    await age_proofs(service, minutes=16)

    assert refusal(await request_move(service, ana, current=NEW_PASSWORD)) == CODE_REQUIRED


async def test_codes_are_limited_within_a_session_too(service: Service) -> None:
    ana, _ = await create_ana_with_factor(service)

    responses = [await change_with(service, ana, PATHS[0], code="no code at all") for _ in range(11)]

    assert [each.status_code for each in responses] == [403] * 10 + [429]


@pytest.mark.slow
async def test_of_two_changes_with_one_code_one_happens(service: Service, database: AsyncDatabaseManager) -> None:
    ana, secret = await create_ana_with_factor(service)
    code = code_of(secret)

    responses = await asyncio.gather(*(reauthenticate(service, ana, code=code) for _ in range(8)))

    assert sorted(each.status_code for each in responses) == [204] + [403] * 7


@pytest.mark.slow
async def test_a_proof_does_not_outlive_a_password_that_was_changed_meanwhile(service: Service) -> None:
    await create_account(service)
    ana, other = await log_in(service), await log_in(service)

    proof, changed = await asyncio.gather(
        reauthenticate(service, other, password=PASSWORD), change_password(service, ana)
    )

    assert changed.status_code == 204
    assert proof.status_code in (204, 401, 403)
    assert (await me(service, other)).status_code == 401


# --- recovery ---


async def test_an_administrator_resets_a_factor_that_was_lost(mailing_service: MailingService) -> None:
    admin = await create_admin(mailing_service)
    ana, _ = await create_ana_with_factor(mailing_service)
    await add_recovery_codes(mailing_service, ana.user_id)
    waiting = await begin_log_in(mailing_service)

    assert (await reset_factor(mailing_service, admin, ana.user_id)).status_code == 204

    assert (await me(mailing_service, ana)).status_code == 401
    assert (await post_code(mailing_service, waiting, "123456")).json()["code"] == "INVALID_SECOND_FACTOR_TOKEN"
    message = mailing_service.mailbox.messages[-1]
    assert message.subject == "Your second factor was removed"
    assert "Those who run the service" in message.text
    again = read_tokens(await post_log_in(mailing_service))
    assert (await me(mailing_service, again)).json()["second_factor"] == {"is_set": False, "recovery_codes_left": 0}


async def test_administrators_do_not_get_rid_of_their_own_factor_by_the_password(service: Service) -> None:
    admin = await create_admin(service)
    await add_second_factor(service, admin.user_id)

    assert refusal(await reset_factor(service, admin, admin.user_id)) == STALE


async def test_a_password_reset_does_not_remove_the_factor(start_service: StartService) -> None:
    service = await start_service(auth_return_token_in_response=True)
    await create_ana_with_factor(service)

    await reset(service, token_of((await request_reset(service)).json()["reset_url"]))

    assert refusal(await post_log_in(service, password=NEW_PASSWORD)) == CODE_REQUIRED


# --- administrators who need a factor ---


async def test_administrators_without_a_factor_may_only_set_one_up(start_service: StartService) -> None:
    service = await start_service(auth_admins_need_second_factor=True)
    admin, user_id = await create_admin(service), await create_account(service)
    needed: Refusal = (403, "SECOND_FACTOR_NEEDED", [])

    assert refusal(await service.client.get("/api/users", headers=admin.bearer)) == needed
    assert refusal(await service.client.get(f"/api/users/{user_id}", headers=admin.bearer)) == needed
    assert refusal(await service.client.get("/auth/sessions", headers=admin.bearer)) == needed
    assert refusal(await remove_factor(service, admin)) == needed
    assert (await me(service, admin)).status_code == 200
    assert (await reauthenticate(service, admin, password=PASSWORD)).status_code == 204
    assert (await service.client.get("/auth/me", headers=(await log_in(service)).bearer)).status_code == 200


async def test_they_are_administrators_once_they_have_one(start_service: StartService) -> None:
    service = await start_service(auth_admins_need_second_factor=True)
    admin = await create_admin(service)

    await set_up(service, admin)

    assert (await service.client.get("/api/users", headers=admin.bearer)).status_code == 200


async def test_they_can_log_out_without_one(start_service: StartService) -> None:
    service = await start_service(auth_admins_need_second_factor=True)
    admin = await create_admin(service)

    assert (await log_out(service, admin)).status_code == 204
