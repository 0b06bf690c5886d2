"""The OpenAPI document held against the answers, by requests that schemathesis makes up. It takes a second to load."""

from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance


def load_contract(app: FastAPI) -> BaseSchema:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def send_examples(contract: BaseSchema, operation: str, headers: dict[str, str], *, count: int) -> None:
    """Send so many requests of an operation, `post /auth/login`, and fail on an answer that is not documented."""
    method, path = operation.split()
    found: APIOperation[Any, Any, Any, Any] = contract[path][method.upper()]

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=found.as_strategy())
    def send(case: schemathesis.Case[Any]) -> None:
        # A schema cannot say which passwords are common, nor which tokens exist.
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance, ignored_auth])

    send()
