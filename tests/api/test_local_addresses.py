"""Addresses of developers: good while they develop, and refused where production would have to send email there."""

from io import BytesIO

import pytest

from src.core.encryption import Encryption
from src.services.imports import import_people
from tests.support.service import Service, StartMailingService
from tests.support.steps import create_account, create_admin, log_in, post_sign_up, refusal, request_move

LOCAL = "ana@corp.local"
PRODUCTION = {
    "app_env": "production",
    "auth_bcrypt_rounds": 10,
    "server_public_url": "https://accounts.example.com",
}


async def test_developers_sign_up_with_one(service: Service) -> None:
    await create_account(service, LOCAL)

    assert (await log_in(service, LOCAL)).user_id


@pytest.mark.slow  # production hashes at a real cost
async def test_production_takes_none_up(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(**PRODUCTION)
    await create_account(service, "root@example.com")
    root = await create_admin(service)

    signed_up = await post_sign_up(service, LOCAL)
    invited = await service.client.post("/api/users", json={"email": LOCAL}, headers=root.bearer)
    moved = await request_move(service, root, LOCAL)

    assert refusal(signed_up) == refusal(invited) == (422, "VALIDATION_ERROR", ["email"])
    assert refusal(moved) == (422, "VALIDATION_ERROR", ["new_email"])


async def test_an_import_into_production_names_the_line(service: Service) -> None:
    line = b'{"email": "ana@corp.local", "hashed_password": "$2b$04$' + b"." * 53 + b'"}'
    reports: list[tuple[int, str]] = []

    for is_production in (True, False):
        counts = await import_people(
            service.database,
            BytesIO(line),
            encryption=Encryption(service.signer.keys),
            report=lambda *report: reports.append(report),
            is_production=is_production,
        )

    assert [number for number, _ in reports] == [1]
    assert "local networks" in reports[0][1]
    assert counts.imported == 1
