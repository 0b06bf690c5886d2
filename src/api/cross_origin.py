"""What front ends of other origins may ask for and read. Loaded only where CORS_ALLOWED_ORIGINS names some."""

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from src.api.errors import envelope
from src.core.exceptions import BadRequestException
from src.core.settings import Settings

_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
_REQUEST_HEADERS = ("Authorization", "Content-Type", "If-Match", "X-Request-ID")
_RESPONSE_HEADERS = (
    "ETag",
    "RateLimit-Limit",
    "RateLimit-Policy",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
)


def install(app: FastAPI, settings: Settings) -> None:
    app.add_middleware(
        CrossOriginMiddleware,
        allow_origins=settings.cors_allowed_origins,
        allow_methods=_METHODS,
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_RESPONSE_HEADERS,
        allow_credentials=settings.auth_refresh_cookie,  # nothing else of ours is a credential that browsers keep
    )


class CrossOriginMiddleware(CORSMiddleware):
    """Starlette's, but it refuses a preflight in the envelope of all errors."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        refusal = envelope(BadRequestException(f"{bytes(response.body).decode()}."))
        refusal.headers["Vary"] = response.headers["Vary"]
        return refusal
