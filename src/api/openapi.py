"""The OpenAPI document: what FastAPI cannot know, since settings decide it or all routes have it in common."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from src.api.dependencies import runtime_of

_HEADERS = {
    "ETag": "The version of what is answered, for `If-Match`.",
    "RateLimit-Limit": "How many requests the limit allows in its period.",
    "RateLimit-Policy": "The limit, and its period in seconds, such as `10;w=900`.",
    "RateLimit-Remaining": "How many requests are left: none.",
    "RateLimit-Reset": "In how many seconds the next request may succeed.",
    "Retry-After": "In how many seconds the next request may succeed.",
    "WWW-Authenticate": "How to authenticate, and what is wrong with a token that was sent.",
}
_HEADERS_OF_STATUS = {
    "401": ("WWW-Authenticate",),
    "429": ("Retry-After", "RateLimit-Limit", "RateLimit-Policy", "RateLimit-Remaining", "RateLimit-Reset"),
    "503": ("Retry-After",),
}


class DocumentedFastAPI(FastAPI):
    """FastAPI, whose document also names the public routes, the headers of errors, and the password's length."""

    def openapi(self) -> dict[str, Any]:
        known = self.openapi_schema
        document = super().openapi()
        if document is not known:
            _add_security(document)
            _add_headers(document)
            _add_password_length(document, runtime_of(self).settings.auth_password_min_length)
        return document


def operation_id(route: APIRoute) -> str:
    """The name of the handler: generated clients call their method by it."""
    return route.name


def _add_security(document: dict[str, Any]) -> None:
    """Say of a route without a scheme that it is public, rather than leave it open."""
    for operation in _operations(document):
        operation.setdefault("security", [])


def _add_headers(document: dict[str, Any]) -> None:
    """Here, since those of each error go with its status: the routes' `responses` stay small."""
    document["components"]["headers"] = {
        name: {"description": description, "schema": {"type": "string"}} for name, description in _HEADERS.items()
    }
    for operation in _operations(document):
        for status, response in operation["responses"].items():
            names = _HEADERS_OF_STATUS.get(status, ())
            if names:
                response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _add_password_length(document: dict[str, Any], min_length: int) -> None:
    document["components"]["schemas"]["NewPassword"]["minLength"] = min_length


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()
