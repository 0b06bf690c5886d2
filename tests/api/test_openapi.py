"""OpenAPI is exact: it documents what the routes answer, and they answer nothing else."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from src.api.app import create_app
from src.api.errors import OAUTH_PATHS
from src.core.tokens import TokenSigner
from src.db import AsyncDatabaseManager
from tests.support.databases import connected
from tests.support.factories import make_session, make_user
from tests.support.keys import sign_access
from tests.support.service import METHODS, Mailbox, Service, make_settings, signer_of, use_database, use_mailbox
from tests.support.steps import bearer

OPERATIONS = (
    "post /auth/signup",
    "post /auth/activate",
    "post /auth/activation/resend",
    "post /auth/login",
    "post /auth/login/second-factor",
    "post /auth/token",
    "post /auth/revoke",
    "post /auth/introspect",
    "post /auth/refresh",
    "post /auth/logout",
    "get /auth/me",
    "post /auth/reauthenticate",
    "post /auth/second-factor",
    "post /auth/second-factor/confirm",
    "post /auth/second-factor/recovery-codes",
    "delete /auth/second-factor",
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
    "delete /api/users/{user_id}/second-factor",
    "get /api/users/{user_id}/sessions",
    "delete /api/users/{user_id}/sessions",
    "get /api/audit-events",
    "get /.well-known/jwks.json",
    "get /.well-known/oauth-authorization-server",
    "get /health/live",
    "get /health/ready",
)


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
        is_oauth = name.partition(" ")[2] in OAUTH_PATHS
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert errors.keys() >= {"500", "503"}, name
        for status, answer in errors.items():
            content = answer["content"]["application/json"]
            schema = "OAuthProblem" if is_oauth else "Problem"
            assert content["schema"] == {"$ref": f"#/components/schemas/{schema}"}, f"{name} {status}"
            for code, example in content["examples"].items():
                words_of_oauth = {"error", "error_description"} if is_oauth else set()
                assert example["value"].keys() == {"detail", "code", "details"} | words_of_oauth
                assert example["value"]["code"] == code


def test_whatever_is_limited_documents_the_429(operations: dict[str, dict[str, Any]]) -> None:
    assert {name for name, operation in operations.items() if "429" in operation["responses"]} == {
        "post /auth/signup",
        "post /auth/activate",
        "post /auth/activation/resend",
        "post /auth/login",
        "post /auth/login/second-factor",
        "post /auth/token",
        "post /auth/revoke",
        "post /auth/introspect",
        "post /auth/reauthenticate",
        "post /auth/second-factor",
        "post /auth/second-factor/confirm",
        "post /auth/password-change",
        "post /auth/password-reset/request",
        "post /auth/password-reset/confirm",
        "post /auth/email-change/request",
        "post /auth/email-change/confirm",
        "post /auth/email-change/revert",
        "post /auth/delete-account",
        "post /auth/invitation/accept",
        "post /api/users",
        "post /api/users/{user_id}/password-reset",
    }


def test_pages_are_not_part_of_the_api(operations: dict[str, dict[str, Any]]) -> None:
    assert set(operations) == set(OPERATIONS)


async def test_the_documentation_is_served(service: Service) -> None:
    response = await service.client.get("/docs")

    assert response.status_code == 200
    assert "swagger" in response.text


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = create_app(make_settings())
    use_database(app, AsyncDatabaseManager("sqlite://"))  # each test puts its own in this place
    return app


@pytest.fixture(scope="module")
def contract(app: FastAPI) -> Any:
    from tests.support.contract import load_contract  # each process of xdist reads this module, and few need that one

    return load_contract(app)


async def log_in_an_admin(url: str, signer: TokenSigner) -> dict[str, str]:
    """A new administrator, and the header of their session."""
    async with connected(url) as database, database.session() as session:
        admin = make_user(is_admin=True)
        session.add(admin)
        await session.flush()
        row = make_session(admin)
        session.add(row)
        await session.commit()
    return bearer(sign_access(signer, admin.id, row.id))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("is_admin", [False, True])
@pytest.mark.slow
def test_whatever_is_sent_the_answer_is_a_documented_one(
    migrated_sqlite_copy: str, app: FastAPI, contract: Any, operation: str, *, is_admin: bool
) -> None:
    from tests.support.contract import send_examples

    use_database(app, AsyncDatabaseManager(migrated_sqlite_copy))
    use_mailbox(app, Mailbox())
    headers = asyncio.run(log_in_an_admin(migrated_sqlite_copy, signer_of(app))) if is_admin else {}

    send_examples(contract, operation, headers, count=25 if is_admin else 10)
