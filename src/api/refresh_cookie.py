"""The refresh token in a cookie that scripts cannot read, for front ends that ask for it (AUTH_REFRESH_COOKIE).

Browsers send a cookie by themselves, so each use must come from a front end of ours. SameSite stops other sites; the
check of the origin also stops other hosts of our site, and browsers that know no SameSite.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError

from src.api.dependencies import RuntimeDep
from src.api.schemas.sessions import TokenResponse
from src.core.exceptions import ForeignOriginError, InvalidRefreshTokenError, ValidationException
from src.core.settings import Settings
from src.services.sessions import TokenPair

# Browsers take a cookie of this prefix from this very host alone, by https, for all its paths (RFC 6265bis, 4.1.3.2):
# another host of the domain cannot put its own in this place.
COOKIE_NAME = "__Host-refresh"

# For `openapi_extra`. As a parameter of the routes, FastAPI would read it where the cookie is off, too.
COOKIE_PARAMETER = {
    "parameters": [
        {
            "name": COOKIE_NAME,
            "in": "cookie",
            "required": False,
            "description": "The refresh token, set by a log-in with `use_cookie`. A token in the body wins.",
            "schema": {"type": "string"},
        }
    ]
}


@dataclass(frozen=True, slots=True)
class RefreshCookie:
    request: Request
    response: Response
    settings: Settings

    def check_wanted(self) -> None:
        """Raises `ValidationException` where cookies are off, and `ForeignOriginError`."""
        if not self.settings.auth_refresh_cookie:
            raise ValidationException.for_field("use_cookie", "must be false here: AUTH_REFRESH_COOKIE is off")
        self._check_origin()

    def get_token(self) -> str:
        """The token that was sent. Raises `ForeignOriginError`, and a refusal if there is none."""
        token = self.find_token()
        if token is not None:
            return token
        if self.settings.auth_refresh_cookie:
            raise InvalidRefreshTokenError
        raise RequestValidationError([{"type": "missing", "loc": ("body",)}])

    def find_token(self) -> str | None:
        """The token that was sent; `None` where there is none or cookies are off. Raises `ForeignOriginError`."""
        if not self._is_sent:
            return None
        self._check_origin()
        return self.request.cookies[COOKIE_NAME]

    def answer(self, pair: TokenPair) -> TokenResponse:
        """The pair of tokens, of which the refresh token goes into the cookie."""
        answer = TokenResponse.of(pair, in_cookie=True)
        self.response.set_cookie(
            COOKIE_NAME,
            pair.refresh_token,
            max_age=answer.refresh_expires_in,
            secure=True,
            httponly=True,
            samesite="strict",
        )
        return answer

    def delete(self) -> None:
        """Delete the cookie, if one was sent."""
        if self._is_sent:
            self.response.headers["Set-Cookie"] = _DELETION

    @contextmanager
    def deleted_if_refused(self) -> Iterator[None]:
        """What is refused now will be refused again: the browser need not send it any more."""
        try:
            yield
        except InvalidRefreshTokenError as refusal:
            if self._is_sent:
                refusal.own_headers["Set-Cookie"] = _DELETION
            raise

    @property
    def _is_sent(self) -> bool:
        return self.settings.auth_refresh_cookie and COOKIE_NAME in self.request.cookies

    def _check_origin(self) -> None:
        """What sends neither header is no browser of today, so no site can have made it do so."""
        origin, site = self.request.headers.get("origin"), self.request.headers.get("sec-fetch-site")
        is_ours = origin == self.settings.public_origin or origin in self.settings.cors_allowed_origins
        if is_ours and site != "cross-site":
            return
        if origin is not None or site in ("cross-site", "same-site"):
            raise ForeignOriginError


def _deletion() -> str:
    response = Response()
    response.delete_cookie(COOKIE_NAME, secure=True, httponly=True, samesite="strict")
    return response.headers["Set-Cookie"]


_DELETION = _deletion()


async def get_refresh_cookie(request: Request, response: Response, runtime: RuntimeDep) -> RefreshCookie:
    return RefreshCookie(request, response, runtime.settings)


RefreshCookieDep = Annotated[RefreshCookie, Depends(get_refresh_cookie)]
