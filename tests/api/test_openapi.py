"""OpenAPI is exact: it documents what the routes answer, and they answer nothing else."""

import asyncio
from typing import Any
from uuid import UUID

import jsonschema_rs
import pytest
from fastapi import FastAPI

from src.api.app import create_app
from src.api.errors import OAUTH_PATHS
from src.api.schemas.fields import write_cursor
from src.core.tokens import TokenSigner
from src.db import AsyncDatabaseManager
from tests.support.databases import connected
from tests.support.factories import make_session, make_user
from tests.support.keys import sign_access
from tests.support.service import METHODS, Mailbox, Service, make_settings, signer_of, use_database, use_mailbox
from tests.support.steps import UNKNOWN_ID, bearer, create_admin

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


Operations = dict[str, dict[str, Any]]


def example_of(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """The example of a schema, put together from those of its parts; a `KeyError` where one has none."""
    if "$ref" in schema:
        return example_of(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "examples" in schema:
        return schema["examples"][0]
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0], document)
    if schema["type"] == "array":
        return [example_of(schema["items"], document)]
    return {name: example_of(value, document) for name, value in schema["properties"].items()}


def success_of(operation: dict[str, Any]) -> Any:
    """The schema of the answer that says yes; `None` where it has no body."""
    [answer] = [answer for status, answer in operation["responses"].items() if status < "300"]
    return answer["content"]["application/json"]["schema"] if "content" in answer else None


def bodies_of(operation: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of what is sent and of what is answered, each alternative by itself."""
    sent = operation.get("requestBody", {}).get("content", {})
    schemas = [*(content["schema"] for content in sent.values()), success_of(operation) or {"type": "null"}]
    alternatives = [alternative for schema in schemas for alternative in schema.get("anyOf", [schema])]
    return [alternative for alternative in alternatives if alternative != {"type": "null"}]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(make_settings(auth_password_min_length=15)).openapi()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> Operations:
    paths = document["paths"]
    return {f"{method} {path}": item[method] for path, item in paths.items() for method in METHODS if method in item}


def test_operation_ids_make_good_names_in_clients(operations: Operations) -> None:
    ids = {name: operation["operationId"] for name, operation in operations.items()}

    assert len(set(ids.values())) == len(ids)
    assert ids["post /auth/signup"] == "sign_up"
    for name, id_ in ids.items():
        assert name.startswith("get ") == id_.startswith(("get_", "list_")), id_


def test_one_thing_is_got_and_many_are_listed(document: dict[str, Any], operations: Operations) -> None:
    for name, operation in operations.items():
        if name.startswith("get "):
            is_list = "items" in example_of(success_of(operation), document)
            assert is_list == operation["operationId"].startswith("list_"), name


def test_every_operation_has_a_tag_a_summary_and_a_description(operations: Operations) -> None:
    for name, operation in operations.items():
        assert operation.keys() >= {"tags", "summary", "description"}, name


def test_every_body_has_an_example_that_its_schema_accepts(document: dict[str, Any], operations: Operations) -> None:
    for name, operation in operations.items():
        for schema in bodies_of(operation):
            rules = jsonschema_rs.validator_for({**schema, "components": document["components"]}, validate_formats=True)
            error = next(rules.iter_errors(example_of(schema, document)), None)
            assert error is None, f"{name}: {error}"


async def test_the_service_accepts_the_examples_of_requests(
    service: Service, document: dict[str, Any], operations: Operations
) -> None:
    root = await create_admin(service)

    for name, operation in operations.items():
        method, path = name.split()
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            body = {"json" if media_type == "application/json" else "data": example_of(content["schema"], document)}
            url = path.format(user_id=UNKNOWN_ID)
            response = await service.client.request(method, url, headers=root.bearer, **body)
            assert response.status_code != 422, f"{name}: {response.text}"


def test_what_may_become_a_password_has_the_length_that_the_settings_ask(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    asked = {
        (name, field)
        for name, schema in schemas.items()
        for field, value in schema.get("properties", {}).items()
        if {"$ref": "#/components/schemas/NewPassword"} in [value, *value.get("anyOf", [])]
    }

    assert schemas["NewPassword"]["minLength"] == 15
    assert asked == {
        ("SignUpRequest", "password"),
        ("ActivationRequest", "password"),
        ("AcceptInvitationRequest", "password"),
        ("PasswordChangeRequest", "new_password"),
        ("PasswordResetRequest", "new_password"),
    }
    assert "minLength" not in schemas["LogInRequest"]["properties"]["password"]


def test_every_operation_says_whether_it_needs_a_token(operations: Operations) -> None:
    security = {name: operation["security"] for name, operation in operations.items()}

    assert security["post /auth/signup"] == []
    assert security["get /auth/me"] == [{"OAuth2": []}]
    assert security["get /api/users/{user_id}"] == security["post /auth/logout"] == [{"OAuth2": []}, {}]
    assert security["get /api/users"] == [{"OAuth2": ["users:read"]}]


def test_the_servers_are_where_the_document_comes_from_and_where_links_lead() -> None:
    document = create_app(make_settings(server_public_url="https://accounts.example.com")).openapi()

    assert [server["url"] for server in document["servers"]] == ["/", "https://accounts.example.com"]


def test_errors_document_the_headers_that_clients_act_on(document: dict[str, Any], operations: Operations) -> None:
    headers = {
        status: set(answer["headers"])
        for status, answer in operations["post /auth/login"]["responses"].items()
        if "headers" in answer
    }

    assert headers == {
        "401": {"WWW-Authenticate"},
        "429": {"Retry-After", "RateLimit-Limit", "RateLimit-Policy", "RateLimit-Remaining", "RateLimit-Reset"},
        "503": {"Retry-After"},
    }
    assert operations["get /auth/me"]["responses"]["200"]["headers"].keys() == {"ETag"}
    assert document["components"]["headers"].keys() >= {"ETag", *set().union(*headers.values())}


def test_the_pattern_of_a_cursor_is_that_of_those_which_are_given_out(operations: Operations) -> None:
    [cursor] = [each for each in operations["get /api/users"]["parameters"] if each["name"] == "cursor"]
    rules = jsonschema_rs.validator_for(cursor["schema"])

    assert all(rules.is_valid(write_cursor(UUID(int=number))) for number in (0, 1, 2**128 - 1))
    assert not rules.is_valid("A" * 21 + "B")


def test_every_error_is_documented_as_the_envelope_with_an_example(operations: Operations) -> None:
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


def test_whatever_is_limited_documents_the_429(operations: Operations) -> None:
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


def test_pages_are_not_part_of_the_api(operations: Operations) -> None:
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
