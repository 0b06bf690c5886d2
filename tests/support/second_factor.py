"""Second factors as tests have them: inserted without the set-up, and the codes that their app would show."""

import time
from uuid import UUID

from pyotp import TOTP

from src.api.dependencies import runtime_of
from src.core.encryption import Encryption
from src.core.second_factor import new_totp_secret
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SecondFactorModel
from tests.support.databases import add_rows
from tests.support.service import Service


async def add_second_factor(service: Service, user_id: str) -> str:
    """A factor that is set, of which no code was used; its secret."""
    return await store_second_factor(service.database, runtime_of(service.app).encryption, user_id)


async def store_second_factor(database: AsyncDatabaseManager, encryption: Encryption, user_id: str) -> str:
    """As `add_second_factor`, without a service."""
    secret, id_ = new_totp_secret(), UUID(user_id)
    encrypted = encryption.encrypt(secret, user_id=id_)
    await add_rows(
        database,
        SecondFactorModel(
            user_id=id_, encrypted_secret=encrypted.data, key_id=encrypted.key_id, confirmed_at=utc_now(), last_step=0
        ),
    )
    return secret


def code_of(secret: str, offset: int = 0) -> str:
    """What the app shows now, or so many steps later. A code works once: use 0 and then 1."""
    return TOTP(secret).at(int(time.time()), counter_offset=offset)
