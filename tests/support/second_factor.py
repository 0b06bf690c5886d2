"""Second factors as tests have them: inserted without the set-up, and the codes that their app would show."""

import time
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from httpx import Response
from pyotp import TOTP
from sqlalchemy import update

from src.api.dependencies import runtime_of
from src.core.encryption import Encryption
from src.core.second_factor import hash_recovery_code, new_recovery_codes, new_totp_secret
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import RecoveryCodeModel, SecondFactorModel, SessionModel
from tests.support.databases import add_rows, execute
from tests.support.service import Service
from tests.support.steps import PASSWORD, LoggedIn, post_log_in


def make_second_factor(encryption: Encryption, user_id: UUID, secret: str) -> SecondFactorModel:
    """A factor that is set, of which no code was used."""
    encrypted = encryption.encrypt(secret, user_id=user_id)
    return SecondFactorModel(
        user_id=user_id, encrypted_secret=encrypted.data, key_id=encrypted.key_id, confirmed_at=utc_now(), last_step=0
    )


async def add_second_factor(service: Service, user_id: str) -> str:
    """A factor that is set, of which no code was used; its secret."""
    return await store_second_factor(service.database, runtime_of(service.app).encryption, user_id)


async def store_second_factor(database: AsyncDatabaseManager, encryption: Encryption, user_id: str) -> str:
    """As `add_second_factor`, without a service."""
    secret = new_totp_secret()
    await add_rows(database, make_second_factor(encryption, UUID(user_id), secret))
    return secret


async def add_recovery_codes(service: Service, user_id: str) -> Sequence[str]:
    codes, id_ = new_recovery_codes(), UUID(user_id)
    await add_rows(
        service.database,
        *(RecoveryCodeModel(user_id=id_, code_hash=hash_recovery_code(code, id_)) for code in codes),
    )
    return codes


def code_of(secret: str, offset: int = 0) -> str:
    """What the app shows now, or so many steps later. A code works once: use 0 and then 1."""
    return TOTP(secret).at(int(time.time()), counter_offset=offset)


async def begin_log_in(service: Service, email: str = "ana@example.com", password: str = PASSWORD) -> str:
    """The first step of two; the token that the second step takes."""
    response = await post_log_in(service, email, password)
    assert (response.status_code, response.json()["code"]) == (403, "SECOND_FACTOR_REQUIRED"), response.text
    return str(response.json()["details"]["second_factor_token"])


async def post_code(service: Service, token: str, code: str, **body: object) -> Response:
    """The second step."""
    return await service.client.post(
        "/auth/login/second-factor", json={"second_factor_token": token, "code": code} | body
    )


async def post_set_up(service: Service, who: LoggedIn, current: str = PASSWORD) -> Response:
    return await service.client.post("/auth/second-factor", json={"current_password": current}, headers=who.bearer)


async def begin_set_up(service: Service, who: LoggedIn) -> str:
    """The secret that the app gets."""
    response = await post_set_up(service, who)
    assert response.status_code == 200, response.text
    return str(response.json()["secret"])


async def confirm_set_up(service: Service, who: LoggedIn, code: str) -> Response:
    return await service.client.post("/auth/second-factor/confirm", json={"code": code}, headers=who.bearer)


async def set_up(service: Service, who: LoggedIn) -> tuple[str, list[str]]:
    """The secret and the recovery codes of a factor that is set."""
    secret = await begin_set_up(service, who)
    response = await confirm_set_up(service, who, code_of(secret))
    assert response.status_code == 200, response.text
    return secret, response.json()["recovery_codes"]


async def renew_codes(service: Service, who: LoggedIn) -> Response:
    return await service.client.post("/auth/second-factor/recovery-codes", headers=who.bearer)


async def remove_factor(service: Service, who: LoggedIn) -> Response:
    return await service.client.delete("/auth/second-factor", headers=who.bearer)


async def reset_factor(service: Service, admin: LoggedIn, user_id: str) -> Response:
    return await service.client.delete(f"/api/users/{user_id}/second-factor", headers=admin.bearer)


async def reauthenticate(service: Service, who: LoggedIn, **proof: str) -> Response:
    return await service.client.post("/auth/reauthenticate", json=proof, headers=who.bearer)


async def prove_by_code(service: Service, who: LoggedIn) -> None:
    """As if the sessions of the user had just proved a code."""
    whose = SessionModel.user_id == UUID(who.user_id)
    await execute(service.database, update(SessionModel).where(whose).values(second_factor_at=utc_now()))


async def age_proofs(service: Service, **age: int) -> None:
    """Let every session have proved what it has so long ago: `await age_proofs(service, minutes=16)`."""
    then = utc_now() - timedelta(**age)
    await execute(service.database, update(SessionModel).values(authenticated_at=then))
    has_proved = SessionModel.second_factor_at.is_not(None)
    await execute(service.database, update(SessionModel).where(has_proved).values(second_factor_at=then))
