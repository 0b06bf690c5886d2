"""Second factors as tests have them: inserted without the set-up, and the codes that their app would show."""

import time
from collections.abc import Sequence
from uuid import UUID

from httpx import Response
from pyotp import TOTP

from src.api.dependencies import runtime_of
from src.core.encryption import Encryption
from src.core.second_factor import hash_recovery_code, new_recovery_codes, new_totp_secret
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import RecoveryCodeModel, SecondFactorModel
from tests.support.databases import add_rows
from tests.support.service import Service
from tests.support.steps import PASSWORD, post_log_in


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
