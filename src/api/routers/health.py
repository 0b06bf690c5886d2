"""`/health`: what orchestrators and load balancers ask."""

import asyncio

from fastapi import APIRouter

from src.api.dependencies import SessionDep
from src.api.errors import document
from src.api.schemas import Health
from src.core.exceptions import ServiceUnavailableException
from src.db.migrations import is_current

READY_TIMEOUT_SECONDS = 3

router = APIRouter(prefix="/health", tags=["Health"])


@router.get("/live")
async def live() -> Health:
    """Whether the process answers. It does not look at the database: restarting the process would not mend that."""
    return Health(status="ok")


@router.get("/ready", responses=document(ServiceUnavailableException))
async def ready(session: SessionDep) -> Health:
    """Whether requests can be served: the database answers and its tables are those that this version needs."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            is_ready = await is_current(session)
    except TimeoutError:
        raise ServiceUnavailableException("The database does not answer. Try again shortly.") from None
    if not is_ready:
        raise ServiceUnavailableException("The database is not migrated: run `python -m alembic upgrade head`.")
    return Health(status="ok")
