import pytest

from src.db import AsyncDatabaseManager
from tests.support.outbox import OutboxHarness
from tests.support.service import MANY_EMAILS, StartMailingService, StartService


@pytest.fixture
async def outbox(
    start_service: StartService,
    start_mailing_service: StartMailingService,
    database: AsyncDatabaseManager,
    database_url: str,
) -> OutboxHarness:
    service = await start_mailing_service(**MANY_EMAILS)
    service.hold_emails()
    return OutboxHarness(service, await start_service(), database, database_url)
