"""`/health/ready` tells of emails that do not get out."""

from datetime import timedelta

import pytest

from src.db.base import utc_now
from src.db.models import OutboxStatus
from tests.support.outbox import OutboxHarness
from tests.support.steps import sign_up


async def test_an_email_that_waits_for_minutes_is_told(outbox: OutboxHarness, caplog: pytest.LogCaptureFixture) -> None:
    await sign_up(outbox.service)
    assert (await outbox.service.client.get("/health/ready")).json() == {"status": "ok", "mail": "ok"}
    long_ago = utc_now() - timedelta(minutes=6)
    await outbox.change(created_at=long_ago, due_at=long_ago)

    response = await outbox.service.client.get("/health/ready")

    assert (response.status_code, response.json()) == (200, {"status": "ok", "mail": "stuck"})
    assert "1 emails are stuck: see `python -m src outbox list`" in caplog.text


async def state_of_mail(outbox: OutboxHarness) -> str:
    return str((await outbox.service.client.get("/health/ready")).json()["mail"])


async def test_an_email_that_fails_for_minutes_is_told_while_it_waits_for_its_next_attempt(
    outbox: OutboxHarness,
) -> None:
    await sign_up(outbox.service)
    now = utc_now()
    await outbox.change(attempts=7, created_at=now - timedelta(minutes=6), due_at=now + timedelta(minutes=5))

    assert await state_of_mail(outbox) == "stuck"


async def test_a_dead_letter_is_told(outbox: OutboxHarness) -> None:
    await sign_up(outbox.service)
    await outbox.change(status=OutboxStatus.DEAD)

    assert await state_of_mail(outbox) == "stuck"


async def test_an_email_that_was_refused_is_not_stuck(outbox: OutboxHarness) -> None:
    await sign_up(outbox.service)
    await outbox.change(status=OutboxStatus.REFUSED, created_at=utc_now() - timedelta(hours=1))

    assert await state_of_mail(outbox) == "ok"
