"""Owners hear of log-ins from where, or with what, they did not log in lately."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from src.core.limits import Rate
from src.core.origin import RequestOrigin
from src.db.base import utc_now
from src.db.models import SessionModel
from src.services.outbox import Dispatcher
from src.services.purge import purge
from tests.support.databases import execute
from tests.support.service import Mailbox, MailingService, StartMailingService, connect, make_settings
from tests.support.steps import create_account, post_log_in

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
NEWER_FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
EDGE = f"{CHROME} Edg/140.0.0.0"
SAFARI = "Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/605.1.15"


async def log_in_from(service: MailingService, address: str, user_agent: str = FIREFOX) -> None:
    headers = {"user-agent": user_agent}
    async with connect(service.app, client=(address, 50_000)) as client:
        response = await post_log_in(MailingService(service.app, client, service.database, *parts(service)), **headers)
    assert response.status_code == 200
    while await service.dispatcher.dispatch_due():
        pass


def parts(service: MailingService) -> tuple[Mailbox, Dispatcher]:
    return service.mailbox, service.dispatcher


def notices(service: MailingService) -> list[str]:
    return [each.text for each in service.mailbox.messages if each.subject == "A log-in from a new place"]


async def test_the_first_log_in_of_an_account_is_no_news(mailing_service: MailingService) -> None:
    await create_account(mailing_service)

    await log_in_from(mailing_service, "192.0.2.1")

    assert notices(mailing_service) == []


@pytest.mark.parametrize(
    ("address", "user_agent", "count"),
    [
        ("192.0.2.1", NEWER_FIREFOX, 0),
        ("192.0.2.2", FIREFOX, 1),
        ("192.0.2.1", CHROME, 1),
    ],
)
async def test_a_new_network_or_browser_is_told_but_no_new_version(
    mailing_service: MailingService, address: str, user_agent: str, count: int
) -> None:
    await create_account(mailing_service)
    await log_in_from(mailing_service, "192.0.2.1")

    await log_in_from(mailing_service, address, user_agent)
    await log_in_from(mailing_service, address, user_agent)

    assert len(notices(mailing_service)) == count
    assert all(address in notice for notice in notices(mailing_service))


async def test_after_thirty_days_a_place_is_new_again(mailing_service: MailingService) -> None:
    await create_account(mailing_service)
    await log_in_from(mailing_service, "192.0.2.1")
    long_ago = utc_now() - timedelta(days=30, seconds=1)
    await execute(mailing_service.database, update(SessionModel).values(last_used_at=long_ago))

    await log_in_from(mailing_service, "192.0.2.1")

    assert len(notices(mailing_service)) == 1


async def test_no_purge_forgets_a_place_within_thirty_days(mailing_service: MailingService) -> None:
    await create_account(mailing_service)
    await log_in_from(mailing_service, "192.0.2.1")
    lately = utc_now() - timedelta(days=29)
    await execute(mailing_service.database, update(SessionModel).values(last_used_at=lately, revoked_at=lately))

    await purge(mailing_service.database, make_settings())
    await log_in_from(mailing_service, "192.0.2.1")

    assert notices(mailing_service) == []


async def test_it_can_be_switched_off(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(auth_notify_new_log_ins=False)
    await create_account(service)
    await log_in_from(service, "192.0.2.1")

    await log_in_from(service, "192.0.2.2")

    assert notices(service) == []


async def test_many_new_places_are_no_flood_and_refuse_nobody(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address=Rate(2, 3600))
    await create_account(service)

    for number in range(5):
        await log_in_from(service, f"192.0.2.{number}")

    assert len(notices(service)) == 2


@pytest.mark.parametrize(
    ("user_agent", "family"),
    [
        (FIREFOX, "Firefox"),
        (CHROME, "Chrome"),
        (EDGE, "Edge"),
        (SAFARI, "Safari"),
        ("curl/8.5.0", "curl"),
        ("python-httpx/0.28.1", "python-httpx"),
        ("evil.example.com", "unknown"),
        ("Call_+1-555-0100/1", "unknown"),
        ("Your-account-is-closed-write-to-us/1", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_browser_is_known_by_its_family(user_agent: str | None, family: str) -> None:
    assert RequestOrigin("192.0.2.1", user_agent).browser == family


def test_subscribers_with_a_network_of_ipv6_stay_where_they_are() -> None:
    here, there = RequestOrigin("2001:db8::1", FIREFOX), RequestOrigin("2001:db8::2", FIREFOX)

    assert here.is_same_place(there)
