"""`/health`: what orchestrators and load balancers ask."""

import asyncio
import logging

from fastapi import APIRouter

from src.api.dependencies import RuntimeDep, SessionDep
from src.api.errors import document
from src.api.schemas.service import Health, Readiness
from src.core.exceptions import ServiceUnavailableException
from src.core.keys import KeyRing, NoKeysError
from src.db.base import utc_now
from src.db.migrations import is_current
from src.db.repositories import OutboxRepository
from src.services.outbox import STUCK_AFTER

log = logging.getLogger(__name__)

READY_TIMEOUT_SECONDS = 3

router = APIRouter(prefix="/health", tags=["Health"])


@router.get("/live")
async def get_liveness() -> Health:
    """Whether the process answers. It does not look at the database: restarting the process would not mend that."""
    return Health()


@router.get("/ready", responses=document(ServiceUnavailableException, defines_schema=True))
async def get_readiness(session: SessionDep, runtime: RuntimeDep) -> Readiness:
    """Whether requests can be served: there are keys to sign tokens with, the database answers, and its tables are
    those that this version needs.

    Emails that are stuck are reported, but do not make the service unready: no request waits for it.
    """
    _check_keys(runtime.signer.keys)
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            if not await is_current(session):
                raise ServiceUnavailableException("The database is not migrated: run `python -m src migrate`.")
            stuck = await OutboxRepository(session).count_stuck(utc_now() - STUCK_AFTER)
    except TimeoutError:
        raise ServiceUnavailableException("The database does not answer. Try again shortly.") from None
    if stuck:
        log.warning("%d emails are stuck: see `python -m src outbox list`", stuck)
    return Readiness(mail="stuck" if stuck else "ok")


def _check_keys(keys: KeyRing) -> None:
    try:
        keys.reload_if_changed()
    except (NoKeysError, OSError):  # their texts name a folder, which is nobody's business here
        raise ServiceUnavailableException(
            "There are no keys to sign tokens with: see `python -m src doctor`."
        ) from None
