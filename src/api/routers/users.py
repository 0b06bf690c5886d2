"""`/api/users`: what is known of users and to whom, and what is done about them."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from src.api.dependencies import OptionalCaller, SessionDep, SettingsDep, UsersDep, UsersReader, UsersWriter
from src.api.errors import BODY_ERRORS, TOKEN_ERRORS, document
from src.api.etags import IfMatch, etag_of
from src.api.schemas import (
    Accepted,
    CountedUserPage,
    InvitationResponse,
    InviteRequest,
    PublicProfile,
    SessionList,
    SessionRecord,
    UserPage,
    UserPatch,
    UserQuery,
    UserRecord,
    write_cursor,
)
from src.core.callers import Principal, Scope, ServiceClient, may
from src.core.exceptions import (
    BadRequestException,
    FieldsForbiddenError,
    ForbiddenException,
    InsufficientScopeError,
    InvalidAccessTokenError,
    LastAdminError,
    MailNotConfiguredError,
    PreconditionFailedException,
    UserDisabledError,
    UserEmailTakenError,
    UserNotFoundError,
    UserPendingError,
    ValidationException,
)
from src.db.repositories import SessionRepository, UserFilter, UserRepository
from src.db.repositories import UserRecord as StoredRecord

router = APIRouter(prefix="/api/users", tags=["Users"])

_PERMISSION_ERRORS = (*TOKEN_ERRORS, ForbiddenException, InsufficientScopeError, ValidationException)


@router.get("", responses=document(*_PERMISSION_ERRORS))
async def list_users(
    query: Annotated[UserQuery, Query()], session: SessionDep, _caller: UsersReader
) -> CountedUserPage | UserPage:
    """Users, a page at a time, by age. For administrators, and services with `users:read`.

    Follow `next_cursor` until it is null: whoever is there all the while is listed once, whoever comes or goes
    meanwhile. Every page costs the same, however far behind.
    """
    users = UserRepository(session)
    which = UserFilter(query.email, query.name, query.is_active, query.is_admin, query.pending)
    records = await users.list_records(which, order=query.order, limit=query.limit + 1, after=query.cursor)
    items = [UserRecord.model_validate(record) for record in records[: query.limit]]
    next_cursor = write_cursor(items[-1].id) if len(records) > query.limit else None
    if not query.count:
        return UserPage(items=items, next_cursor=next_cursor)
    return CountedUserPage(items=items, next_cursor=next_cursor, count=await users.count_records(which))


@router.post(
    "", status_code=201, responses=document(*BODY_ERRORS, BadRequestException, *_PERMISSION_ERRORS, UserEmailTakenError)
)
async def invite_user(body: InviteRequest, users: UsersDep, caller: UsersWriter) -> InvitationResponse:
    """Invite somebody: they choose a password by the link that is mailed to them, and are active then. For
    administrators, and services with `users:write`, which cannot invite administrators.

    Inviting an address again takes the place of the invitation before, whose link ends.
    """
    invitation = await users.invite(caller, email=body.email, name=body.name, is_admin=body.is_admin)
    return InvitationResponse(user_id=invitation.user_id, invitation_url=invitation.invitation_url)


@router.get(
    "/{user_id}",
    responses=document(ValidationException, InvalidAccessTokenError, UserNotFoundError),
)
async def read_user(
    user_id: UUID, response: Response, session: SessionDep, settings: SettingsDep, caller: OptionalCaller
) -> UserRecord | PublicProfile:
    """A user: the whole record for themselves, administrators and services with `users:read`, the public profile for
    anyone else (unless USERS_PUBLIC_PROFILES=false hides it).

    No token is needed for the public profile; one that is not valid is refused all the same.
    """
    record = await UserRepository(session).get_record(user_id)
    if not (settings.users_public_profiles or _sees_all(caller, user_id)):
        raise UserNotFoundError
    return _show(record, response, caller)


@router.patch(
    "/{user_id}",
    responses=document(
        *BODY_ERRORS,
        BadRequestException,
        *_PERMISSION_ERRORS,
        FieldsForbiddenError,
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
    users: UsersDep,
    caller: UsersWriter,
    if_match: IfMatch,
) -> UserRecord | PublicProfile:
    """Change a user: people their own `name`; administrators also `is_active` and `is_admin` of anyone; services with
    `users:write` the `name` and `is_active` of who is no administrator. Disabling logs the user out at once.

    The answer is what the caller may read of the user.
    """
    record = await users.update(caller, user_id, body.changes(), if_match=if_match)
    return _show(record, response, caller)


@router.delete(
    "/{user_id}",
    status_code=204,
    responses=document(*_PERMISSION_ERRORS, UserNotFoundError, LastAdminError, PreconditionFailedException),
)
async def delete_user(user_id: UUID, users: UsersDep, caller: UsersWriter, if_match: IfMatch) -> None:
    """Remove a user and everything about them, at once and for good; they are told by mail. For administrators, and
    services with `users:write`. The address is free again."""
    await users.delete(caller, user_id, if_match=if_match)


@router.post(
    "/{user_id}/password-reset",
    status_code=202,
    responses=document(
        *_PERMISSION_ERRORS, UserNotFoundError, UserPendingError, UserDisabledError, MailNotConfiguredError
    ),
)
async def send_password_reset(user_id: UUID, users: UsersDep, caller: UsersWriter) -> Accepted:
    """Mail the user a link that sets a new password. Nobody else sees it. For administrators, and services with
    `users:write`."""
    await users.send_password_reset(caller, user_id)
    return Accepted(detail="A link is on its way to the user.")


@router.get("/{user_id}/sessions", responses=document(*_PERMISSION_ERRORS, UserNotFoundError))
async def list_user_sessions(user_id: UUID, session: SessionDep, caller: UsersReader) -> SessionList:
    """The sessions in which a user is logged in, the newest first. For administrators, and services with
    `users:read`."""
    await UserRepository(session).get_record(user_id)
    current_id = caller.session_id if isinstance(caller, Principal) else None
    sessions = await SessionRepository(session).list_live(user_id)
    return SessionList(items=[SessionRecord.of(each, current_id) for each in sessions])


@router.delete("/{user_id}/sessions", status_code=204, responses=document(*_PERMISSION_ERRORS, UserNotFoundError))
async def revoke_user_sessions(user_id: UUID, users: UsersDep, caller: UsersWriter) -> None:
    """Log a user out everywhere, at once. For administrators, and services with `users:write`."""
    await users.revoke_sessions(caller, user_id)


def _sees_all(caller: Principal | ServiceClient | None, user_id: UUID) -> bool:
    is_owner = isinstance(caller, Principal) and caller.user_id == user_id
    return caller is not None and (is_owner or may(caller, Scope.USERS_READ))


def _show(
    record: StoredRecord, response: Response, caller: Principal | ServiceClient | None
) -> UserRecord | PublicProfile:
    """What the caller may see of the user, with its tag."""
    if _sees_all(caller, record.id):
        response.headers["ETag"] = etag_of(record)
        return UserRecord.model_validate(record)
    profile = PublicProfile.model_validate(record)
    # Of what is shown alone: a tag of the whole record would tell strangers when its owner logs in.
    response.headers["ETag"] = etag_of((profile.id, profile.name, profile.is_active, profile.created_at))
    return profile
