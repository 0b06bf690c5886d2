"""The time of an answer must not tell who has an account. How well that works is measured by `make check-timing`."""

import time
from collections.abc import Awaitable, Callable

import pytest
from httpx import Response

from src.api.dependencies import STEPS_OF_A_REFUSAL, runtime_of
from src.core.limits import Rate
from tests.support.service import Service, StartMailingService
from tests.support.steps import post_log_in, post_sign_up, request_reset, resend

STEP = 0.05


async def post_password_grant(service: Service) -> Response:
    form = {"grant_type": "password", "username": "ana@example.com", "password": "a-wrong-password"}
    return await service.client.post("/auth/token", data=form)


@pytest.mark.parametrize("ask", [post_log_in, post_password_grant, post_sign_up, resend, request_reset])
async def test_an_answer_about_an_address_waits_for_a_whole_step(
    start_mailing_service: StartMailingService, ask: Callable[[Service], Awaitable[Response]]
) -> None:
    service = await start_mailing_service()
    runtime_of(service.app).answer_step_seconds = STEP
    start = time.monotonic()

    await ask(service)

    assert time.monotonic() - start >= STEP


async def test_whoever_asks_too_often_waits_longer(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(rate_limit_requests_per_origin=Rate.parse("1/1h"))
    await post_log_in(service)
    runtime_of(service.app).answer_step_seconds = STEP / STEPS_OF_A_REFUSAL
    start = time.monotonic()

    response = await post_log_in(service)

    assert response.status_code == 429
    assert time.monotonic() - start >= STEP
