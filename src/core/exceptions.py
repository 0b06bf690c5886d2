"""The ways to refuse. Each has a status, a stable code for programs, and a sentence for people.

Services raise these; `src.api.errors` turns every one of them into the envelope `{detail, code, details}`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from src.core.limits import Rate


class AppException(Exception):  # noqa: N818 - the fixed name of the family; its leaves end in Error
    """A refusal that goes to the caller. Subclasses set `status_code`, `code` and `message`."""

    status_code: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL_ERROR"
    message: ClassVar[str] = "Something went wrong on our side. Try again later."
    headers: ClassVar[Mapping[str, str]] = {}
    oauth_error: ClassVar[str] = "server_error"  # what the OAuth routes call it (RFC 6749, section 5.2)

    def __init__(self, message: str | None = None, *, details: Mapping[str, Any] | None = None) -> None:
        self.detail = message or self.message
        self.details = dict(details or {})
        self.own_headers: dict[str, str] = {}  # besides those of its kind
        super().__init__(self.detail)

    def response_headers(self) -> Mapping[str, str]:
        return {**self.headers, **self.own_headers}


class BadRequestException(AppException):
    status_code = 400
    code = "BAD_REQUEST"
    message = "The request could not be read. Check its body."
    oauth_error = "invalid_request"


class UnauthorizedException(AppException):
    status_code = 401
    code = "UNAUTHORIZED"
    message = "Log in, and send the access token as a bearer token."
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}  # RFC 9110, section 11.6.1
    oauth_error = "invalid_client"


class InvalidCredentialsError(UnauthorizedException):
    """Wrong, unknown, pending and disabled look the same, so that nobody learns who has an account."""

    code = "INVALID_CREDENTIALS"
    message = (
        "E-mail address or password is wrong, or the address is not confirmed yet: look for the link in your email."
    )
    oauth_error = "invalid_grant"


class InvalidCodeError(UnauthorizedException):
    code = "INVALID_CODE"
    message = "The code is wrong, or it was used already. Wait for the next one, or use a recovery code."
    oauth_error = "invalid_grant"


class InvalidSecondFactorTokenError(UnauthorizedException):
    """Used, expired, ended by too many wrong codes or by a change of the password: they look the same."""

    code = "INVALID_SECOND_FACTOR_TOKEN"
    message = "The second-factor token is not valid any more. Log in with the password again."


class InvalidAccessTokenError(UnauthorizedException):
    code = "INVALID_ACCESS_TOKEN"
    message = "The access token is not valid: it has expired, or its session has ended. Refresh it, or log in again."
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}  # RFC 6750, section 3
    oauth_error = "invalid_token"


class InvalidRefreshTokenError(UnauthorizedException):
    code = "INVALID_REFRESH_TOKEN"
    message = "The refresh token is not valid: it was used, or its session has ended. Log in again."
    oauth_error = "invalid_grant"


class ForbiddenException(AppException):
    status_code = 403
    code = "FORBIDDEN"
    message = "You may not do this."
    oauth_error = "insufficient_scope"


class InsufficientScopeError(ForbiddenException):
    code = "INSUFFICIENT_SCOPE"
    message = "The access token of this service does not have the scope that is needed."
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}  # RFC 6750, 3.1

    @classmethod
    def for_scope(cls, scope: str) -> "InsufficientScopeError":
        return cls(details={"scope": scope})


class SignUpClosedError(ForbiddenException):
    code = "SIGN_UP_CLOSED"
    message = "Nobody can sign up here: ask an administrator for an invitation."


class ForeignOriginError(ForbiddenException):
    code = "FOREIGN_ORIGIN"
    oauth_error = "invalid_request"
    message = (
        "The refresh cookie is not for this site: its origin is neither that of SERVER_PUBLIC_URL nor one of "
        "CORS_ALLOWED_ORIGINS, or it is on another domain."
    )


class FieldsForbiddenError(ForbiddenException):
    """`details["fields"]` names the fields that the caller may not set, as a 422 does."""

    code = "FIELDS_FORBIDDEN"
    message = "You may not set some of these fields. See details.fields."

    @classmethod
    def for_fields(cls, fields: Iterable[str], reason: str) -> "FieldsForbiddenError":
        return cls(details={"fields": [{"field": field, "reason": reason} for field in sorted(fields)]})


class WrongPasswordError(ForbiddenException):
    """Not a 401: the access token is good, and clients answer a 401 by refreshing it."""

    code = "WRONG_PASSWORD"
    message = "The current password is wrong."


class WrongCodeError(ForbiddenException):
    """Not a 401, as with `WrongPasswordError`."""

    code = "WRONG_CODE"
    message = "This is no code of your second factor, or it was used already. Wait for the next one."


class SecondFactorRequiredError(ForbiddenException):
    code = "SECOND_FACTOR_REQUIRED"
    message = "This account has a second factor: send a code of the authenticator app, or a recovery code."
    oauth_error = "invalid_grant"


class SecondFactorNeededError(ForbiddenException):
    code = "SECOND_FACTOR_NEEDED"
    message = "Administrators need a second factor here: set one up first, at /auth/second-factor."


class ReauthenticationRequiredError(ForbiddenException):
    code = "REAUTHENTICATION_REQUIRED"
    message = "This needs a fresh proof of who you are: send your password or a code to /auth/reauthenticate first."


class NotFoundException(AppException):
    status_code = 404
    code = "NOT_FOUND"
    message = "There is nothing here."


class MethodNotAllowedException(AppException):
    status_code = 405
    code = "METHOD_NOT_ALLOWED"
    message = "This path does not take that method. The Allow header lists those that it takes."
    oauth_error = "invalid_request"


class ConflictException(AppException):
    status_code = 409
    code = "CONFLICT"
    message = "This conflicts with what is stored."


class PreconditionFailedException(AppException):
    status_code = 412
    code = "PRECONDITION_FAILED"
    message = "It has changed since you read it. Read it again, and send its new ETag in If-Match."


class PayloadTooLargeException(AppException):
    status_code = 413
    code = "PAYLOAD_TOO_LARGE"
    message = "The body is too large: send at most 64 KiB."
    oauth_error = "invalid_request"


class UnsupportedMediaTypeException(AppException):
    status_code = 415
    code = "UNSUPPORTED_MEDIA_TYPE"
    message = "Send the body as JSON, with the header Content-Type: application/json."
    oauth_error = "invalid_request"


class ValidationException(AppException):
    """`details["fields"]` lists what is wrong as `{field, reason}`, and never repeats the input."""

    status_code = 422
    code = "VALIDATION_ERROR"
    message = "Some fields are not valid. See details.fields."
    oauth_error = "invalid_request"

    @classmethod
    def for_field(cls, field: str, reason: str) -> "ValidationException":
        return cls(details={"fields": [{"field": field, "reason": reason}]})


class TooManyRequestsException(AppException):
    """`is_first` marks the first of a key in its period. The others leave no event: the trail would grow with them."""

    status_code = 429
    code = "TOO_MANY_REQUESTS"
    message = "Too many attempts. Wait as long as Retry-After says."
    oauth_error = "temporarily_unavailable"
    is_first = False

    @classmethod
    def after(cls, wait: float, rate: Rate, *, is_first: bool = False) -> Self:
        """To be tried again after `wait` seconds."""
        seconds = str(max(1, math.ceil(wait)))  # never so few that the next attempt comes too early
        error = cls()
        error.is_first = is_first
        error.own_headers = {
            "Retry-After": seconds,
            # draft-ietf-httpapi-ratelimit-headers-07
            "RateLimit-Limit": str(rate.count),
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": seconds,
            "RateLimit-Policy": f"{rate.count};w={rate.period}",
        }
        return error


class ServiceUnavailableException(AppException):
    status_code = 503
    code = "SERVICE_UNAVAILABLE"
    message = "The service is busy or a part of it is down. Try again shortly."
    oauth_error = "temporarily_unavailable"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}


class UserNotFoundError(NotFoundException):
    code = "USER_NOT_FOUND"
    message = "There is no such user."


class SessionNotFoundError(NotFoundException):
    code = "SESSION_NOT_FOUND"
    message = "You have no such session."


class UserEmailTakenError(ConflictException):
    code = "USER_EMAIL_TAKEN"
    message = "An account with this e-mail address exists. Log in, or reset its password."


class PasswordNeededError(ConflictException):
    code = "PASSWORD_NEEDED"
    message = "More than one sign-up waits for this address. Choose a new password, and send it with the link's token."


class UserPendingError(ConflictException):
    code = "USER_PENDING"
    message = "The address of this user is not confirmed yet: until it is, they can only be deleted."


class UserDisabledError(ConflictException):
    code = "USER_DISABLED"
    message = "This user is disabled: enable them first."


class LastAdminError(ConflictException):
    code = "LAST_ADMIN"
    message = "Nobody else is an active administrator: make somebody else one first."


class SecondFactorSetError(ConflictException):
    code = "SECOND_FACTOR_SET"
    message = "A second factor is set already: remove it first."


class SecondFactorNotSetError(ConflictException):
    code = "SECOND_FACTOR_NOT_SET"
    message = "There is no second factor: set one up first."


class ClientNotFoundError(NotFoundException):
    code = "CLIENT_NOT_FOUND"
    message = "There is no such client."


class ClientNameTakenError(ConflictException):
    code = "CLIENT_NAME_TAKEN"
    message = "A client has this name: choose another, rotate the secret of that one, or revoke it first."


class ClientRotatingError(ConflictException):
    code = "CLIENT_ROTATING"
    message = (
        "The secret before the current one still works, so this would end the current one too. Wait, or rotate with "
        "--overlap-hours 0, which ends both at once."
    )


class InvalidClientError(UnauthorizedException):
    """Unknown, revoked and a wrong secret look the same."""

    code = "INVALID_CLIENT"
    message = "The client is not known, or its secret is wrong."
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Basic realm="clients"'}  # RFC 6749, section 5.2


class InvalidScopeError(BadRequestException):
    code = "INVALID_SCOPE"
    message = "The client was not given one of these scopes."
    oauth_error = "invalid_scope"


class InvalidTargetError(BadRequestException):
    code = "INVALID_TARGET"
    message = "Name at most one resource, and one of those in JWT_RESOURCES."
    oauth_error = "invalid_target"  # RFC 8707, section 2


class UnsupportedGrantTypeError(BadRequestException):
    code = "UNSUPPORTED_GRANT_TYPE"
    message = "The grant type is not supported: use password, refresh_token or client_credentials."
    oauth_error = "unsupported_grant_type"


class EmailNotConfiguredError(ConflictException):
    code = "MAIL_NOT_CONFIGURED"
    message = "SMTP is not configured: whoever runs the service must set SMTP_HOST and SMTP_FROM."


class InvalidTokenError(BadRequestException):
    """Wrong, used and expired look the same, so that nobody learns which tokens once existed."""

    code = "INVALID_TOKEN"
    message = "This link is not valid: it was used, it has expired, or it was mistyped. Ask for a new one."
