"""OpenAPI is exact: it documents what the routes answer, and they answer nothing else."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from src.api.app import create_app
from src.core.passwords import UNUSABLE_PASSWORD
from src.core.tokens import TokenSigner
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel
from src.db.repositories import SessionRepository, UserRepository
from tests.support.service import METHODS, Mailbox, Service, make_settings, use_database, use_mailbox


@pytest.fixture
def operations(service: Service) -> dict[str, dict[str, Any]]:
    paths = service.app.openapi()["paths"]
    return {f"{method} {path}": item[method] for path, item in paths.items() for method in METHODS if method in item}


def test_every_operation_has_a_tag_a_summary_and_a_description(operations: dict[str, dict[str, Any]]) -> None:
    for name, operation in operations.items():
        assert operation.keys() >= {"tags", "summary", "description"}, name


def test_every_body_has_an_example(service: Service, operations: dict[str, dict[str, Any]]) -> None:
    schemas = service.app.openapi()["components"]["schemas"]

    for name, operation in operations.items():
        if "requestBody" not in operation:
            continue
        [content] = operation["requestBody"]["content"].values()
        schema = content["schema"]
        reference = schema.get("$ref") or schema["anyOf"][0]["$ref"]
        for field, value in schemas[reference.rpartition("/")[2]]["properties"].items():
            assert "examples" in value or "examples" in value["anyOf"][0], f"{name}: {field}"


def test_every_error_is_documented_as_the_envelope_with_an_example(operations: dict[str, dict[str, Any]]) -> None:
    for name, operation in operations.items():
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert errors.keys() >= {"500", "503"}, name
        for status, answer in errors.items():
            content = answer["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, f"{name} {status}"
            for code, example in content["examples"].items():
                assert example["value"].keys() == {"detail", "code", "details"}
                assert example["value"]["code"] == code


def test_pages_are_not_part_of_the_api(operations: dict[str, dict[str, Any]]) -> None:
    assert set(operations) == {
        "post /auth/signup",
        "post /auth/activate",
        "post /auth/activation/resend",
        "post /auth/login",
        "post /auth/token",
        "post /auth/refresh",
        "post /auth/logout",
        "get /auth/me",
        "get /auth/sessions",
        "delete /auth/sessions",
        "delete /auth/sessions/{session_id}",
        "post /auth/password-change",
        "post /auth/password-reset/request",
        "post /auth/password-reset/confirm",
        "post /auth/email-change/request",
        "post /auth/email-change/confirm",
        "post /auth/email-change/revert",
        "post /auth/delete-account",
        "post /auth/invitation/accept",
        "get /auth/events",
        "get /api/users",
        "post /api/users",
        "get /api/users/{user_id}",
        "patch /api/users/{user_id}",
        "delete /api/users/{user_id}",
        "post /api/users/{user_id}/password-reset",
        "get /api/users/{user_id}/sessions",
        "delete /api/users/{user_id}/sessions",
        "get /api/audit-events",
        "get /.well-known/jwks.json",
        "get /.well-known/oauth-authorization-server",
        "get /health/live",
        "get /health/ready",
    }


async def test_the_documentation_is_served(service: Service) -> None:
    response = await service.client.get("/docs")

    assert response.status_code == 200
    assert "swagger" in response.text


async def log_in_an_admin(url: str, signer: TokenSigner) -> dict[str, str]:
    """A new administrator, and the header of their session."""
    database, later = AsyncDatabaseManager(url), utc_now() + timedelta(hours=1)
    async with database.session() as session:
        admin = UserModel(email=f"{uuid4()}@example.com", hashed_password=UNUSABLE_PASSWORD, is_admin=True)
        await UserRepository(session).add(admin)
        row = SessionModel(user_id=admin.id, idle_expires_at=later, expires_at=later)
        await SessionRepository(session).add(row)
        await session.commit()
    await database.disconnect()
    return {"Authorization": f"Bearer {signer.sign_access(admin.id, row.id)}"}


@pytest.mark.parametrize("is_admin", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whatever_is_sent_the_answer_is_a_documented_one(migrated_sqlite_copy: str, *, is_admin: bool) -> None:
    app = create_app(make_settings())
    database = AsyncDatabaseManager(migrated_sqlite_copy)
    use_database(app, database)
    use_mailbox(app, Mailbox())
    contract = schemathesis.openapi.from_asgi("/openapi.json", app)

    for found in contract.get_all_operations():
        assert isinstance(found, Ok)
        # Of its own for each operation: some end it.
        headers = asyncio.run(log_in_an_admin(migrated_sqlite_copy, app.state.signer)) if is_admin else {}
        send_examples(found.ok(), headers, count=25 if is_admin else 10)


def send_examples(operation: APIOperation[Any, Any, Any, Any], headers: dict[str, str], count: int) -> None:
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def send(case: schemathesis.Case[Any]) -> None:
        # A schema cannot say which passwords are common, nor which tokens exist.
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance, ignored_auth])

    send()
