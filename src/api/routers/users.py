"""`/api/users`: what is known of users and to whom, and what is done about them."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from src.api.dependencies import (
    NO_TOKEN_NEEDED,
    ContextDep,
    OptionalCaller,
    UncheckedUsersWriter,
    UnitOfWorkDep,
    UsersReader,
    runtime_of,
)
from src.api.errors import BODY_ERRORS, LIMITED_BODY_ERRORS, TOKEN_ERRORS, document
from src.api.etags import ETAG_HEADER, IfMatch, etag_of, public_etag_of
from src.api.schemas.accounts import Accepted
from src.api.schemas.fields import write_cursor
from src.api.schemas.sessions import SessionList, SessionRecord
from src.api.schemas.users import (
    CountedUserPage,
    InvitationResponse,
    InviteRequest,
    PublicProfile,
    UserPage,
    UserPatch,
    UserQuery,
)
from src.core.callers import AuthenticatedUser, HttpCaller, Scope, may
from src.core.exceptions import (
    EmailNotConfiguredError,
    FieldsForbiddenError,
    InsufficientScopeError,
    InvalidAccessTokenError,
    LastAdminError,
    PreconditionFailedException,
    ReauthenticationRequiredError,
    SecondFactorNeededError,
    SecondFactorNotSetError,
    TooManyRequestsException,
    UserDisabledError,
    UserEmailTakenError,
    UserNotFoundError,
    UserPendingError,
    ValidationException,
)
from src.core.users import UserRecord
from src.db.repositories import UserFilter
from src.services import UserService

router = APIRouter(prefix="/api/users", tags=["Users"])

_PERMISSION_ERRORS = (*TOKEN_ERRORS, InsufficientScopeError, ValidationException)


@router.get("", responses=document(*_PERMISSION_ERRORS))
async def list_users(
    query: Annotated[UserQuery, Query()], uow: UnitOfWorkDep, _caller: UsersReader
) -> CountedUserPage | UserPage:
    """Users, a page at a time, by age. For administrators, and services with `users:read`.

    Follow `next_cursor` until it is null: whoever is there all the while is listed once, whoever comes or goes
    meanwhile. Every page costs the same, however far behind.
    """
    filters = UserFilter(query.email, query.name, query.is_active, query.is_admin, query.pending)
    records = await uow.users.list_records(filters, order=query.order, limit=query.limit + 1, after=query.cursor)
    items = list(records[: query.limit])
    next_cursor = write_cursor(items[-1].id) if len(records) > query.limit else None
    if not query.count:
        return UserPage(items=items, next_cursor=next_cursor)
    return CountedUserPage(items=items, next_cursor=next_cursor, count=await uow.users.count_records(filters))


@router.post(
    "",
    status_code=201,
    responses=document(
        *LIMITED_BODY_ERRORS,
        *_PERMISSION_ERRORS,
        FieldsForbiddenError,
        ReauthenticationRequiredError,
        UserEmailTakenError,
    ),
)
async def invite_user(body: InviteRequest, context: ContextDep, caller: UncheckedUsersWriter) -> InvitationResponse:
    """Invite somebody: they choose a password by the link that is emailed to them, and are active then. For
    administrators, and services with `users:write`, which cannot invite administrators.

    Inviting an address again takes the place of the invitation before, whose link ends.
    """
    invitation = await UserService(context).invite(caller, email=body.email, name=body.name, is_admin=body.is_admin)
    return InvitationResponse(user_id=invitation.user_id, invitation_url=invitation.invitation_url)


@router.get(
    "/{user_id}",
    openapi_extra=NO_TOKEN_NEEDED,
    responses=ETAG_HEADER
    | document(ValidationException, InvalidAccessTokenError, SecondFactorNeededError, UserNotFoundError),
)
async def get_user(
    user_id: UUID, request: Request, response: Response, uow: UnitOfWorkDep, caller: OptionalCaller
) -> UserRecord | PublicProfile:
    """A user: the whole record for themselves, administrators and services with `users:read`, the public profile for
    anyone else (unless USERS_PUBLIC_PROFILES=false hides it).

    No token is needed for the public profile; one that is not valid is refused all the same.
    """
    record = await uow.users.get_record(user_id)
    if not (runtime_of(request.app).settings.users_public_profiles or _sees_all(caller, user_id)):
        raise UserNotFoundError
    return _show(record, response, caller)


@router.patch(
    "/{user_id}",
    responses=ETAG_HEADER
    | document(
        *BODY_ERRORS,
        *_PERMISSION_ERRORS,
        FieldsForbiddenError,
        ReauthenticationRequiredError,
        UserNotFoundError,
        UserPendingError,
        LastAdminError,
        PreconditionFailedException,
    ),
)
async def update_user(
    user_id: UUID,
    body: UserPatch,
    response: Response,
    context: ContextDep,
    caller: UncheckedUsersWriter,
    if_match: IfMatch,
) -> UserRecord | PublicProfile:
    """Change a user: people their own `name`; administrators also `is_active` and `is_admin` of anyone; services with
    `users:write` the `name` and `is_active` of who is no administrator. Disabling logs the user out at once.

    The answer is what the caller may read of the user.
    """
    record = await UserService(context).update(caller, user_id, body.changes(), precondition=if_match)
    return _show(record, response, caller)


@router.delete(
    "/{user_id}",
    status_code=204,
    responses=document(
        *_PERMISSION_ERRORS,
        ReauthenticationRequiredError,
        UserNotFoundError,
        LastAdminError,
        PreconditionFailedException,
    ),
)
async def delete_user(user_id: UUID, context: ContextDep, caller: UncheckedUsersWriter, if_match: IfMatch) -> None:
    """Remove a user and everything about them, at once and for good; they get a notice by email. The address is free
    again. For administrators, and services with `users:write`."""
    await UserService(context).delete(caller, user_id, precondition=if_match)


@router.post(
    "/{user_id}/password-reset",
    status_code=202,
    responses=document(
        *_PERMISSION_ERRORS,
        UserNotFoundError,
        UserPendingError,
        UserDisabledError,
        EmailNotConfiguredError,
        TooManyRequestsException,
    ),
)
async def send_password_reset(user_id: UUID, context: ContextDep, caller: UncheckedUsersWriter) -> Accepted:
    """Email the user a link that sets a new password. Nobody else sees it. For administrators, and services with
    `users:write`."""
    await UserService(context).send_password_reset(caller, user_id)
    return Accepted(detail="A link is on its way to the user.")


@router.delete(
    "/{user_id}/second-factor",
    status_code=204,
    responses=document(*_PERMISSION_ERRORS, UserNotFoundError, ReauthenticationRequiredError, SecondFactorNotSetError),
)
async def reset_second_factor(user_id: UUID, context: ContextDep, caller: UncheckedUsersWriter) -> None:
    """Remove the second factor of somebody who has lost it, and log them out everywhere; they get a notice by email.
    For administrators."""
    await UserService(context).reset_second_factor(caller, user_id)


@router.get("/{user_id}/sessions", responses=document(*_PERMISSION_ERRORS, UserNotFoundError))
async def list_user_sessions(user_id: UUID, uow: UnitOfWorkDep, caller: UsersReader) -> SessionList:
    """The sessions in which a user is logged in, the newest first. For administrators, and services with
    `users:read`."""
    await uow.users.get_record(user_id)
    current_id = caller.session_id if isinstance(caller, AuthenticatedUser) else None
    sessions = await uow.sessions.list_live(user_id)
    return SessionList(items=[SessionRecord.of(each, current_id) for each in sessions])


@router.delete("/{user_id}/sessions", status_code=204, responses=document(*_PERMISSION_ERRORS, UserNotFoundError))
async def revoke_user_sessions(user_id: UUID, context: ContextDep, caller: UncheckedUsersWriter) -> None:
    """Log a user out everywhere, at once. For administrators, and services with `users:write`."""
    await UserService(context).revoke_sessions(caller, user_id)


def _sees_all(caller: HttpCaller | None, user_id: UUID) -> bool:
    is_owner = isinstance(caller, AuthenticatedUser) and caller.user_id == user_id
    return caller is not None and (is_owner or may(caller, Scope.USERS_READ))


def _show(record: UserRecord, response: Response, caller: HttpCaller | None) -> UserRecord | PublicProfile:
    """What the caller may see of the user, with its tag."""
    if _sees_all(caller, record.id):
        response.headers["ETag"] = etag_of(record)
        return record
    response.headers["ETag"] = public_etag_of(record)
    return PublicProfile.model_validate(record)
