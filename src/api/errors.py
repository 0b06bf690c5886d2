"""Every error becomes the envelope `{detail, code, details}`: ours, the framework's, and the database's."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from src.api.pages import is_page, render_refusal
from src.api.schemas.fields import EXAMPLE_TOKEN
from src.api.schemas.service import OAuthProblem, Problem
from src.core.exceptions import (
    AppException,
    BadRequestException,
    ForbiddenException,
    InvalidAccessTokenError,
    PayloadTooLargeException,
    SecondFactorNeededError,
    SecondFactorRequiredError,
    ServiceUnavailableException,
    TooManyRequestsException,
    UnauthorizedException,
    UnsupportedMediaTypeException,
    ValidationException,
)
from src.core.fields import reason_of
from src.core.logs import RareWarning
from src.db.database import is_transient_database_error

_database_warning = RareWarning(logging.getLogger(__name__))

_EXAMPLES: Mapping[type[AppException], Any] = {
    ValidationException: {"fields": [{"field": "email", "reason": "is required"}]},
    SecondFactorRequiredError: {
        "second_factor_token": EXAMPLE_TOKEN,
        "expires_in": 300,
        "methods": ["totp", "recovery_code"],
    },
    AppException: {"request_id": "5f0c7f6a1d0b4b7f9a53c1c5d7a0e1aa"},
}
OAUTH_PATHS = frozenset({"/auth/token", "/auth/revoke", "/auth/introspect"})
_OUTSIDE_DESCRIPTION = re.compile(r"[^\x20-\x21\x23-\x5B\x5D-\x7E]")  # RFC 6749, section 5.2
_BY_STATUS = {family.status_code: family for family in AppException.__subclasses__()}


def install(app: FastAPI) -> None:
    app.add_exception_handler(AppException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_input)
    app.add_exception_handler(HTTPException, _refuse_by_framework)
    for error in (DBAPIError, PoolTimeoutError, TimeoutError):
        app.add_exception_handler(error, _refuse_without_database)


def envelope(error: AppException, *, path: str = "") -> JSONResponse:
    """`path` is that of the request: on some, OAuth libraries look for members of their own beside ours."""
    status_code, body = _render(error, is_oauth=path in OAUTH_PATHS)
    headers = dict(error.response_headers())
    if status_code != error.status_code:
        headers.pop("WWW-Authenticate", None)  # it goes with the 401 that this no longer is
    return JSONResponse(body.model_dump(), status_code=status_code, headers=headers)


def _render(error: AppException, *, is_oauth: bool) -> tuple[int, Problem]:
    body = Problem(detail=error.detail, code=error.code, details=error.details)
    if not is_oauth:
        return error.status_code, body
    fields = [f"{field['field']} {field['reason']}" for field in error.details.get("fields", ())]
    description = _OUTSIDE_DESCRIPTION.sub("'", "; ".join(fields) or error.detail)
    # RFC 6749, section 5.2: what is wrong with the grant or the form is a 400.
    is_bad_request = error.oauth_error == "invalid_grant" or error.status_code in (415, 422)
    status_code = 400 if is_bad_request else error.status_code
    return status_code, OAuthProblem(**dict(body), error=error.oauth_error, error_description=description)


def document(*errors: type[AppException], defines_schema: bool = False) -> dict[int | str, dict[str, Any]]:
    """A route's `responses` for OpenAPI: an example of each error that it can give.

    One route defines the schema, to which all others refer: FastAPI would build a validator for each of 200 responses,
    which takes 2 MiB and 60 ms of each start.
    """
    return _document(errors, Problem, defines_schema=defines_schema)


def document_oauth(*errors: type[AppException], defines_schema: bool = False) -> dict[int | str, dict[str, Any]]:
    """As `document`, for a route of `OAUTH_PATHS`."""
    responses = _document(
        (AppException, ServiceUnavailableException, PayloadTooLargeException, BadRequestException, *errors),
        OAuthProblem,
        defines_schema=defines_schema,
    )
    # Without it, FastAPI would document a 422 of its own, which these routes never answer.
    return responses | {"4XX": responses[400] | {"description": "Any other refusal."}}


def _document(
    errors: Iterable[type[AppException]], schema: type[Problem], *, defines_schema: bool
) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in errors:
        status_code, example = _render(kind(details=_EXAMPLES.get(kind)), is_oauth=schema is OAuthProblem)
        content = {"schema": {"$ref": f"#/components/schemas/{schema.__name__}"}, "examples": {}}
        response = responses.setdefault(
            status_code, {"description": kind.message, "content": {"application/json": content}}
        )
        if defines_schema:
            response["model"] = schema
        response["content"]["application/json"]["examples"][kind.code] = {"value": example.model_dump()}
    return responses


# What any route that takes a body can answer, before its own rules are reached.
BODY_ERRORS: tuple[type[AppException], ...] = (
    PayloadTooLargeException,
    UnsupportedMediaTypeException,
    ValidationException,
    BadRequestException,
)

# The same, of a route that is limited.
LIMITED_BODY_ERRORS: tuple[type[AppException], ...] = (*BODY_ERRORS, TooManyRequestsException)

# What any route that needs an access token can answer: a missing and a bad one share the status, and the 403 is for a
# person or a service that may not, and for an administrator who lacks a second factor.
TOKEN_ERRORS: tuple[type[AppException], ...] = (
    UnauthorizedException,
    InvalidAccessTokenError,
    ForbiddenException,
    SecondFactorNeededError,
)


def _path_of(request: Request) -> str:
    """Without the prefix under which a proxy may have put us."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppException)  # noqa: S101 - Starlette's handlers are typed by Exception alone
    return render_refusal(request, error) if is_page(request) else envelope(error, path=_path_of(request))


async def _refuse_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - see _refuse
    if _is_wrong_media_type(request, error):
        return await _refuse(request, UnsupportedMediaTypeException())
    fields = [{"field": _field(e["loc"]), "reason": reason_of(e)} for e in error.errors()]
    return await _refuse(request, ValidationException(details={"fields": fields}))


def _is_wrong_media_type(request: Request, error: RequestValidationError) -> bool:
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return sent != "application/json" and any(e["loc"] == ("body",) for e in error.errors())


def _field(location: Sequence[str | int]) -> str:
    """`password`, `query.limit`, `path.user_id`, or `body` for the whole of it."""
    place, *parts = (str(part) for part in location)
    # A name that we do not know is input, too.
    named = [part for part in parts if part.replace("-", "_").isidentifier() and len(part) <= 40]
    return ".".join(named if place == "body" and named else [place, *named])


async def _refuse_by_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - see _refuse
    response = await _refuse(request, _BY_STATUS.get(error.status_code, AppException)())
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _allowed_methods(request: Request) -> list[str]:
    """Every method of a path, of which the framework names those of the first route that matches."""
    allowed = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return ["GET", "HEAD", *allowed[1:]] if "GET" in allowed else allowed


async def _refuse_without_database(request: Request, error: Exception) -> Response:
    if not is_transient_database_error(error):
        raise error
    _database_warning.give(f"The database did not answer: {log_line(error)}")
    return await _refuse(request, ServiceUnavailableException())


def log_line(error: BaseException) -> str:
    """The error's kind and the first line of its text: the next ones may quote a row, and so a hash. Of the database's
    errors the kind alone, since some quote a parameter at once."""
    if isinstance(error, DBAPIError) or type(error).__module__.startswith(("asyncpg", "sqlalchemy", "sqlite3")):
        driver = getattr(error, "orig", None) or error
        code = getattr(driver, "sqlstate", None) or getattr(driver, "sqlite_errorname", None)
        return f"{type(error).__qualname__}" + (f" ({code})" if code else "")
    return f"{type(error).__qualname__}: {str(error).partition(chr(10))[0]}"
