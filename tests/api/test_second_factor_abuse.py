"""What the second factor keeps from who has a session, the password, or both; and what it must cost nobody."""

from sqlalchemy import select, update

from src.db import AsyncDatabaseManager
from src.db.models import SecondFactorModel
from tests.support.databases import execute
from tests.support.second_factor import (
    add_recovery_codes,
    add_second_factor,
    age_proofs,
    begin_log_in,
    code_of,
    post_code,
    reauthenticate,
    remove_factor,
    reset_factor,
    set_up,
)
from tests.support.service import Service
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    LoggedIn,
    change_password,
    create_account,
    create_admin,
    log_in,
    patch_user,
    refusal,
    request_move,
)

WAITING_ENDED: tuple[int, str, list[str]] = (401, "INVALID_SECOND_FACTOR_TOKEN", [])


async def create_ana_with_factor(service: Service) -> tuple[LoggedIn, str]:
    user_id = await create_account(service)
    ana = await log_in(service)
    return ana, await add_second_factor(service, user_id)


# --- taking over ---


async def test_a_session_and_the_password_make_no_administrator_who_resets_the_factor(service: Service) -> None:
    root, eve_id = await create_admin(service), await create_account(service, "eve@example.com")
    await add_second_factor(service, root.user_id)
    await age_proofs(service, minutes=60)

    proof = await reauthenticate(service, root, password=PASSWORD)
    promotion = await patch_user(service, root, eve_id, is_admin=True)

    assert refusal(proof) == (403, "SECOND_FACTOR_REQUIRED", [])
    assert refusal(promotion) == (403, "REAUTHENTICATION_REQUIRED", [])


async def test_a_log_in_that_waits_does_not_outlive_a_reset_of_the_factor(service: Service) -> None:
    admin = await create_admin(service)
    ana, _ = await create_ana_with_factor(service)
    waiting = await begin_log_in(service)
    await reset_factor(service, admin, ana.user_id)
    secret, _ = await set_up(service, await log_in(service))

    assert refusal(await post_code(service, waiting, code_of(secret, 1))) == WAITING_ENDED


async def test_nor_its_removal(service: Service) -> None:
    ana, secret = await create_ana_with_factor(service)
    waiting = await begin_log_in(service)
    await reauthenticate(service, ana, code=code_of(secret))
    await remove_factor(service, ana)
    secret, _ = await set_up(service, ana)

    assert refusal(await post_code(service, waiting, code_of(secret, 1))) == WAITING_ENDED


async def test_an_invitation_of_an_administrator_is_not_taken_back_without_a_recent_proof(service: Service) -> None:
    admin = await create_admin(service)
    body = {"email": "new@example.com", "is_admin": True}
    await service.client.post("/api/users", json=body, headers=admin.bearer)
    await age_proofs(service, minutes=16)

    response = await service.client.post("/api/users", json=body | {"is_admin": False}, headers=admin.bearer)

    assert refusal(response) == (403, "REAUTHENTICATION_REQUIRED", [])


# --- locking the owner out ---


async def test_wrong_codes_in_a_stolen_session_leave_the_log_in_open(service: Service) -> None:
    stolen, secret = await create_ana_with_factor(service)
    for _ in range(11):
        blocked = await reauthenticate(service, stolen, code="no code at all")

    assert blocked.status_code == 429
    assert (await post_code(service, await begin_log_in(service), code_of(secret))).status_code == 200


async def test_wrong_codes_of_who_knows_the_password_leave_the_session_open(service: Service) -> None:
    ana, secret = await create_ana_with_factor(service)
    for _ in range(2):
        waiting = await begin_log_in(service)
        for _ in range(5):
            await post_code(service, waiting, "no code at all")
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD, "code": code_of(secret)}

    response = await service.client.post("/auth/password-change", json=body, headers=ana.bearer)

    assert response.status_code == 204


async def test_a_right_password_without_a_code_is_no_wrong_guess(service: Service) -> None:
    ana, _ = await create_ana_with_factor(service)

    answers = [await change_password(service, ana) for _ in range(11)]

    assert {answer.json()["code"] for answer in answers} == {"SECOND_FACTOR_REQUIRED"}


async def test_who_fails_at_the_code_uses_up_no_email_of_the_address(service: Service) -> None:
    ana, _ = await create_ana_with_factor(service)
    body = {"new_email": "new@example.com", "current_password": PASSWORD, "code": "no code at all"}
    for _ in range(9):
        await service.client.post("/auth/email-change/request", json=body, headers=ana.bearer)
        await request_move(service, ana)
    await create_account(service, "bob@example.com")

    moved = [await request_move(service, await log_in(service, "bob@example.com")) for _ in range(2)]

    assert [response.status_code for response in moved] == [202, 202]


# --- a key that is lost ---


async def test_a_recovery_code_needs_no_key(service: Service) -> None:
    ana, _ = await create_ana_with_factor(service)
    codes = await add_recovery_codes(service, ana.user_id)
    await execute(service.database, update(SecondFactorModel).values(key_id="gone"))

    assert (await post_code(service, await begin_log_in(service), codes[0])).status_code == 200


async def test_a_key_that_is_away_costs_no_guesses(service: Service, database: AsyncDatabaseManager) -> None:
    _, secret = await create_ana_with_factor(service)
    async with database.session() as session:
        key_id = await session.scalar(select(SecondFactorModel.key_id))
    await execute(database, update(SecondFactorModel).values(key_id="gone"))
    waiting = await begin_log_in(service)
    answers = {(await post_code(service, waiting, code_of(secret))).status_code for _ in range(11)}
    await execute(database, update(SecondFactorModel).values(key_id=key_id))

    assert answers == {503}
    assert (await post_code(service, waiting, code_of(secret))).status_code == 200
