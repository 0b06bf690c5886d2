"""What people, services and commands do, and the event that each action must leave, or that it is counted instead.

`test_audit.py` goes through it.
"""

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import UUID

from httpx import Response
from sqlalchemy import update

from src.api.dependencies import runtime_of
from src.core.passwords import hash_password
from src.db.models import EventKind, UserModel
from src.services.clients import ClientSecret
from src.services.imports import import_people
from tests.support.databases import execute
from tests.support.factories import add_users, expire_links
from tests.support.second_factor import (
    add_second_factor,
    begin_log_in,
    begin_set_up,
    code_of,
    post_code,
    prove_by_code,
)
from tests.support.service import MailingService, Service, accounts_of, clients_of, keys_of
from tests.support.steps import (
    PASSWORD,
    LoggedIn,
    activate,
    bearer,
    create_account,
    create_client,
    log_in,
    post_client_credentials,
    post_log_in,
    post_sign_up,
    refresh,
    resend,
    service_token,
    sign_up,
    token_of,
)

HERE = "127.0.0.1"
HASH = hash_password(PASSWORD, 4)
NOBODY = UUID(int=0)
OF_BEFORE = {"If-Match": '"of-before"'}


@dataclass(frozen=True)
class Event:
    """The event of a success, or of a failure if there is a reason. People and services are told by name."""

    kind: EventKind
    reason: str | None = None
    on: str | None = None
    by: str | None = None
    client: str | None = None
    changes: str | None = None
    origin: str | None = HERE
    has_address_hash: bool = False


@dataclass(frozen=True)
class Stage:
    """Where one flow plays: with people of its own, and one administrator whom all flows share."""

    service: Service  # its links are in its answers
    mailing: MailingService
    root: LoggedIn
    number: int

    def address(self, name: str = "ana") -> str:
        return f"{name}@{self.number}.example.com"

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        who: LoggedIn | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Coroutine[Any, Any, Response]:
        headers = {**(who.bearer if who else {}), **headers}
        return self.service.client.request(method, path, json=body, headers=headers)

    async def account(self, name: str = "ana") -> LoggedIn:
        await add_users(self.service.database, {"email": self.address(name), "hashed_password": HASH})
        return await log_in(self.service, self.address(name))

    async def account_with_factor(self) -> str:
        return await add_second_factor(self.service, (await self.account()).user_id)

    async def proved_by_code(self, name: str = "ana") -> LoggedIn:
        """Logged in with the second factor."""
        ana = await self.account(name)
        await add_second_factor(self.service, ana.user_id)
        await prove_by_code(self.service, ana)
        return ana

    async def disabled(self) -> LoggedIn:
        ana = await self.account()
        await self.ask("PATCH", f"/api/users/{ana.user_id}", {"is_active": False}, who=self.root)
        return ana

    async def pending(self, name: str = "ana") -> str:
        return str((await sign_up(self.service, self.address(name)))["user_id"])

    async def reset_link(self, name: str = "ana") -> str:
        response = await self.ask("POST", "/auth/password-reset/request", {"email": self.address(name)})
        return token_of(response.json()["reset_url"])

    async def email_change_link(self, who: LoggedIn, new_email: str) -> str:
        body = {"new_email": new_email, "current_password": PASSWORD}
        response = await self.ask("POST", "/auth/email-change/request", body, who=who)
        return token_of(response.json()["email_change_url"])

    async def email_revert_link(self) -> str:
        await create_account(self.mailing, self.address())
        ana = await log_in(self.mailing, self.address())
        body = {"new_email": self.address("ana-moved"), "current_password": PASSWORD}
        await self.mailing.client.post("/auth/email-change/request", json=body, headers=ana.bearer)
        token = self.mailing.mailbox.token()
        await self.mailing.client.post("/auth/email-change/confirm", json={"token": token})
        return self.mailing.mailbox.token()

    async def invitation_link(self) -> str:
        response = await self.ask("POST", "/api/users", {"email": self.address()}, who=self.root)
        return token_of(response.json()["invitation_url"])

    @property
    def client_name(self) -> str:
        return f"reports-{self.number}"

    async def client(self, *scopes: str) -> ClientSecret:
        return await create_client(self.service, *scopes, name=self.client_name)

    async def service_with(self, *scopes: str) -> dict[str, str]:
        return bearer(await service_token(self.service, await self.client(*scopes)))

    async def only_root(self) -> None:
        """Other flows may have left administrators."""
        others = UserModel.id != UUID(self.root.user_id)
        await execute(self.service.database, update(UserModel).where(others).values(is_admin=False))


# A flow comes to the moment before the action, and hands it over undone.
Action = Coroutine[Any, Any, object]
Flow = Callable[[Stage], Awaitable[Action]]


@dataclass(frozen=True)
class Line:
    flow: Flow
    event: Event
    reason_in_answer: bool = True  # the reason is the code in the answer
    changes_nothing: bool = True  # but for the event, if it is refused


TABLE: list[Line] = []


def leaves(
    kind: EventKind,
    reason: str | None = None,
    *,
    on: str | None = None,
    by: str | None = None,
    client: str | None = None,
    changes: str | None = None,
    origin: str | None = HERE,
    has_address_hash: bool = False,
    reason_in_answer: bool = True,
    changes_nothing: bool = True,
) -> Callable[[Flow], Flow]:
    event = Event(kind, reason, on, by, client, changes, origin, has_address_hash)

    def add(flow: Flow) -> Flow:
        TABLE.append(Line(flow, event, reason_in_answer, changes_nothing))
        return flow

    return add


# Failures that name nobody, each with the kind and the code by which it is counted.
COUNTED: list[tuple[Flow, EventKind, str]] = []


def is_counted(kind: EventKind, code: str) -> Callable[[Flow], Flow]:
    def add(flow: Flow) -> Flow:
        COUNTED.append((flow, kind, code))
        return flow

    return add


Opened = TypeVar("Opened")


async def by_command(opened: AbstractAsyncContextManager[Opened], do: Callable[[Opened], Awaitable[object]]) -> None:
    async with opened as service:
        await do(service)


@leaves(EventKind.SIGN_UP, on="ana")
async def a_sign_up(stage: Stage) -> Action:
    return post_sign_up(stage.service, stage.address())


@leaves(EventKind.SIGN_UP, on="ana")
async def a_sign_up_with_an_owned_address_where_the_link_is_mailed(stage: Stage) -> Action:
    await stage.account()
    return post_sign_up(stage.mailing, stage.address())


@leaves(EventKind.SIGN_UP, "USER_EMAIL_TAKEN", on="ana")
async def a_sign_up_with_an_owned_address(stage: Stage) -> Action:
    await stage.account()
    return post_sign_up(stage.service, stage.address())


@is_counted(EventKind.SIGN_UP, "VALIDATION_ERROR")
async def a_sign_up_with_a_weak_password(stage: Stage) -> Action:
    return post_sign_up(stage.service, stage.address(), password="short")


@leaves(EventKind.ACTIVATION, on="ana", by="ana")
async def an_activation(stage: Stage) -> Action:
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    return activate(stage.service, token_of(link))


@is_counted(EventKind.ACTIVATION, "INVALID_TOKEN")
async def an_activation_with_an_expired_link(stage: Stage) -> Action:
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    await expire_links(stage.service.database)
    return activate(stage.service, token_of(link))


@leaves(EventKind.ACTIVATION, "INVALID_TOKEN", on="ana", by="ana")
async def an_activation_that_loses_the_address(stage: Stage) -> Action:
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    await stage.account()
    return activate(stage.service, token_of(link))


@leaves(EventKind.ACTIVATION, "PASSWORD_NEEDED", on="ana", by="ana")
async def an_activation_of_one_of_two_sign_ups_without_a_password(stage: Stage) -> Action:
    await sign_up(stage.service, stage.address())
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    return activate(stage.service, token_of(link))


@leaves(EventKind.ACTIVATION, "VALIDATION_ERROR", on="ana", by="ana")
async def an_activation_of_one_of_two_sign_ups_with_a_weak_password(stage: Stage) -> Action:
    await sign_up(stage.service, stage.address())
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    return activate(stage.service, token_of(link), password="short")


@leaves(EventKind.ACTIVATION_RESEND, on="ana")
async def another_link_for_a_sign_up(stage: Stage) -> Action:
    await stage.pending()
    return resend(stage.mailing, stage.address())


@leaves(EventKind.ACTIVATION_RESEND, on="ana")
async def another_link_for_who_has_an_account(stage: Stage) -> Action:
    await stage.account()
    return resend(stage.mailing, stage.address())


@leaves(EventKind.LOG_IN, on="ana", by="ana")
async def a_log_in(stage: Stage) -> Action:
    await stage.account()
    return post_log_in(stage.service, stage.address())


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", on="ana")
async def a_log_in_with_a_wrong_password(stage: Stage) -> Action:
    await stage.account()
    return post_log_in(stage.service, stage.address(), "a-wrong-password")


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", on="ana")
async def a_log_in_of_somebody_who_is_disabled(stage: Stage) -> Action:
    await stage.disabled()
    return post_log_in(stage.service, stage.address())


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", has_address_hash=True)
async def a_log_in_before_the_activation(stage: Stage) -> Action:
    await stage.pending()
    return post_log_in(stage.service, stage.address())


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", has_address_hash=True)
async def a_log_in_with_an_unknown_address(stage: Stage) -> Action:
    form = {"grant_type": "password", "username": stage.address(), "password": PASSWORD}
    return stage.service.client.post("/auth/token", data=form)


@leaves(EventKind.LOG_IN, "SECOND_FACTOR_REQUIRED", on="ana", changes_nothing=False)
async def a_log_in_that_waits_for_its_second_factor(stage: Stage) -> Action:
    await stage.account_with_factor()
    return post_log_in(stage.service, stage.address())


@leaves(EventKind.LOG_IN, "INVALID_CODE", on="ana", changes_nothing=False)
async def a_log_in_with_a_wrong_code(stage: Stage) -> Action:
    await stage.account_with_factor()
    return post_code(stage.service, await begin_log_in(stage.service, stage.address()), "no code at all")


@leaves(EventKind.LOG_IN, "INVALID_CODE", on="ana")
async def a_log_in_by_form_with_a_wrong_code(stage: Stage) -> Action:
    await stage.account_with_factor()
    form = {"grant_type": "password", "username": stage.address(), "password": PASSWORD, "otp": "no code at all"}
    return stage.service.client.post("/auth/token", data=form)


@leaves(EventKind.LOG_IN, on="ana", by="ana")
async def a_log_in_with_a_code(stage: Stage) -> Action:
    secret = await stage.account_with_factor()
    return post_code(stage.service, await begin_log_in(stage.service, stage.address()), code_of(secret))


@is_counted(EventKind.LOG_IN, "INVALID_SECOND_FACTOR_TOKEN")
async def a_log_in_with_a_token_that_has_expired(stage: Stage) -> Action:
    secret = await stage.account_with_factor()
    token = await begin_log_in(stage.service, stage.address())
    await expire_links(stage.service.database)
    return post_code(stage.service, token, code_of(secret))


@leaves(EventKind.LOG_OUT, on="ana", by="ana")
async def a_log_out(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/logout", who=await stage.account())


@leaves(EventKind.LOG_OUT, on="ana", by="ana")
async def a_log_out_by_refresh_token(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/logout", {"refresh_token": (await stage.account()).refresh_token})


@is_counted(EventKind.LOG_OUT, "INVALID_REFRESH_TOKEN")
async def a_log_out_by_what_is_no_refresh_token(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/logout", {"refresh_token": "none"})


@leaves(EventKind.REFRESH_REPLAY, "INVALID_REFRESH_TOKEN", on="ana", changes_nothing=False)
async def a_replay_of_a_refresh_token(stage: Stage) -> Action:
    ana = await stage.account()
    second = (await refresh(stage.service, ana.refresh_token)).json()["refresh_token"]
    await refresh(stage.service, second)
    return refresh(stage.service, ana.refresh_token)


@leaves(EventKind.SESSION_REVOCATION, on="ana", by="ana")
async def the_end_of_ones_other_sessions(stage: Stage) -> Action:
    return stage.ask("DELETE", "/auth/sessions", who=await stage.account())


@leaves(EventKind.SESSION_REVOCATION, on="ana", by="ana")
async def the_end_of_a_session(stage: Stage) -> Action:
    ana = await stage.account()
    session = (await stage.ask("GET", "/auth/sessions", who=ana)).json()["items"][0]["id"]
    return stage.ask("DELETE", f"/auth/sessions/{session}", who=ana)


@leaves(EventKind.SESSION_REVOCATION, "SESSION_NOT_FOUND", on="ana", by="ana")
async def the_end_of_somebody_elses_session(stage: Stage) -> Action:
    session = (await stage.ask("GET", "/auth/sessions", who=await stage.account("eve"))).json()["items"][0]["id"]
    return stage.ask("DELETE", f"/auth/sessions/{session}", who=await stage.account())


@leaves(EventKind.SESSION_REVOCATION, on="ana", by="root")
async def a_log_out_everywhere_by_an_administrator(stage: Stage) -> Action:
    return stage.ask("DELETE", f"/api/users/{(await stage.account()).user_id}/sessions", who=stage.root)


@leaves(EventKind.SESSION_REVOCATION, "INSUFFICIENT_SCOPE", on="ana", client="reports")
async def a_log_out_everywhere_by_a_service_without_the_scope(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}/sessions"
    return stage.ask("DELETE", path, headers=await stage.service_with("users:read"))


@leaves(EventKind.PASSWORD_CHANGE, on="ana", by="ana")
async def a_password_change(stage: Stage) -> Action:
    body = {"current_password": PASSWORD, "new_password": "another-password"}
    return stage.ask("POST", "/auth/password-change", body, who=await stage.account())


@leaves(EventKind.PASSWORD_CHANGE, "WRONG_PASSWORD", on="ana", by="ana")
async def a_password_change_with_a_wrong_password(stage: Stage) -> Action:
    body = {"current_password": "a-wrong-password", "new_password": "another-password"}
    return stage.ask("POST", "/auth/password-change", body, who=await stage.account())


@leaves(EventKind.PASSWORD_CHANGE, "VALIDATION_ERROR", on="ana", by="ana")
async def a_password_change_to_a_weak_one(stage: Stage) -> Action:
    body = {"current_password": PASSWORD, "new_password": "short"}
    return stage.ask("POST", "/auth/password-change", body, who=await stage.account())


@leaves(EventKind.PASSWORD_RESET_REQUEST, on="ana")
async def a_request_for_a_reset(stage: Stage) -> Action:
    await stage.account()
    return stage.ask("POST", "/auth/password-reset/request", {"email": stage.address()})


@is_counted(EventKind.PASSWORD_RESET_REQUEST, "USER_NOT_FOUND")
async def a_request_for_a_reset_of_an_unknown_address(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/password-reset/request", {"email": stage.address()})


@leaves(EventKind.PASSWORD_RESET_REQUEST, "USER_DISABLED", on="ana", reason_in_answer=False)
async def a_request_for_a_reset_of_somebody_who_is_disabled(stage: Stage) -> Action:
    await stage.disabled()
    return stage.ask("POST", "/auth/password-reset/request", {"email": stage.address()})


@leaves(EventKind.PASSWORD_RESET_REQUEST, on="ana", by="root")
async def a_reset_that_an_administrator_asks_for(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}/password-reset"
    return stage.mailing.client.post(path, headers=stage.root.bearer)


@leaves(EventKind.PASSWORD_RESET_REQUEST, "USER_PENDING", on="ana", by="root")
async def a_reset_that_an_administrator_asks_for_before_the_activation(stage: Stage) -> Action:
    return stage.mailing.client.post(f"/api/users/{await stage.pending()}/password-reset", headers=stage.root.bearer)


@leaves(EventKind.PASSWORD_RESET_REQUEST, "USER_DISABLED", on="ana", by="root")
async def a_reset_that_an_administrator_asks_for_somebody_disabled(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.disabled()).user_id}/password-reset"
    return stage.mailing.client.post(path, headers=stage.root.bearer)


@leaves(EventKind.PASSWORD_RESET_REQUEST, "FORBIDDEN", on="ana", by="eve")
async def a_reset_that_somebody_else_asks_for(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}/password-reset"
    return stage.ask("POST", path, who=await stage.account("eve"))


@leaves(EventKind.PASSWORD_RESET, on="ana", by="ana")
async def a_reset(stage: Stage) -> Action:
    await stage.account()
    body = {"token": await stage.reset_link(), "new_password": "another-password"}
    return stage.ask("POST", "/auth/password-reset/confirm", body)


@is_counted(EventKind.PASSWORD_RESET, "INVALID_TOKEN")
async def a_reset_with_a_used_link(stage: Stage) -> Action:
    await stage.account()
    body = {"token": await stage.reset_link(), "new_password": "another-password"}
    await stage.ask("POST", "/auth/password-reset/confirm", body)
    return stage.ask("POST", "/auth/password-reset/confirm", body)


@is_counted(EventKind.PASSWORD_RESET, "INVALID_TOKEN")
async def a_reset_with_an_expired_link(stage: Stage) -> Action:
    await stage.account()
    body = {"token": await stage.reset_link(), "new_password": "another-password"}
    await expire_links(stage.service.database)
    return stage.ask("POST", "/auth/password-reset/confirm", body)


@leaves(EventKind.PASSWORD_RESET, "VALIDATION_ERROR", on="ana", by="ana")
async def a_reset_to_a_weak_password(stage: Stage) -> Action:
    await stage.account()
    return stage.ask(
        "POST", "/auth/password-reset/confirm", {"token": await stage.reset_link(), "new_password": "short"}
    )


@leaves(EventKind.EMAIL_CHANGE_REQUEST, on="ana", by="ana")
async def a_request_for_an_email_change(stage: Stage) -> Action:
    body = {"new_email": stage.address("moved"), "current_password": PASSWORD}
    return stage.ask("POST", "/auth/email-change/request", body, who=await stage.account())


@leaves(EventKind.EMAIL_CHANGE_REQUEST, "WRONG_PASSWORD", on="ana", by="ana")
async def a_request_for_an_email_change_with_a_wrong_password(stage: Stage) -> Action:
    body = {"new_email": stage.address("moved"), "current_password": "a-wrong-password"}
    return stage.ask("POST", "/auth/email-change/request", body, who=await stage.account())


@leaves(EventKind.EMAIL_CHANGE_REQUEST, "VALIDATION_ERROR", on="ana", by="ana")
async def a_request_to_keep_ones_address(stage: Stage) -> Action:
    body = {"new_email": stage.address(), "current_password": PASSWORD}
    return stage.ask("POST", "/auth/email-change/request", body, who=await stage.account())


@leaves(EventKind.EMAIL_CHANGE, on="ana-moved", by="ana-moved")
async def an_email_change(stage: Stage) -> Action:
    token = await stage.email_change_link(await stage.account(), stage.address("ana-moved"))
    return stage.ask("POST", "/auth/email-change/confirm", {"token": token})


@leaves(EventKind.EMAIL_CHANGE, "INVALID_TOKEN", on="ana", by="ana")
async def an_email_change_that_loses_the_address(stage: Stage) -> Action:
    token = await stage.email_change_link(await stage.account(), stage.address("eve"))
    await stage.account("eve")
    return stage.ask("POST", "/auth/email-change/confirm", {"token": token})


@is_counted(EventKind.EMAIL_CHANGE, "INVALID_TOKEN")
async def an_email_change_with_an_expired_link(stage: Stage) -> Action:
    token = await stage.email_change_link(await stage.account(), stage.address("moved"))
    await expire_links(stage.service.database)
    return stage.ask("POST", "/auth/email-change/confirm", {"token": token})


@leaves(EventKind.EMAIL_REVERT, on="ana", by="ana")
async def an_email_change_undone(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/email-change/revert", {"token": await stage.email_revert_link()})


@is_counted(EventKind.EMAIL_REVERT, "INVALID_TOKEN")
async def an_email_change_undone_with_an_expired_link(stage: Stage) -> Action:
    token = await stage.email_revert_link()
    await expire_links(stage.service.database)
    return stage.ask("POST", "/auth/email-change/revert", {"token": token})


@leaves(EventKind.EMAIL_REVERT, "INVALID_TOKEN", on="ana-moved", by="ana-moved")
async def an_email_change_that_cannot_be_undone_as_the_address_is_owned(stage: Stage) -> Action:
    token = await stage.email_revert_link()
    await stage.account()
    return stage.ask("POST", "/auth/email-change/revert", {"token": token})


@leaves(EventKind.ACCOUNT_DELETION, origin=None)
async def a_departure(stage: Stage) -> Action:
    body = {"current_password": PASSWORD}
    return stage.ask("POST", "/auth/delete-account", body, who=await stage.account())


@leaves(EventKind.ACCOUNT_DELETION, "WRONG_PASSWORD", on="ana", by="ana")
async def a_departure_with_a_wrong_password(stage: Stage) -> Action:
    body = {"current_password": "a-wrong-password"}
    return stage.ask("POST", "/auth/delete-account", body, who=await stage.account())


@leaves(EventKind.ACCOUNT_DELETION, "LAST_ADMIN", on="root", by="root")
async def a_departure_of_the_last_administrator(stage: Stage) -> Action:
    await stage.only_root()
    return stage.ask("POST", "/auth/delete-account", {"current_password": PASSWORD}, who=stage.root)


@leaves(EventKind.INVITATION, on="ana", by="root")
async def an_invitation(stage: Stage) -> Action:
    return stage.ask("POST", "/api/users", {"email": stage.address()}, who=stage.root)


@leaves(EventKind.INVITATION, on="ana", by="root", changes="is_admin=true")
async def an_invitation_of_an_administrator(stage: Stage) -> Action:
    return stage.ask("POST", "/api/users", {"email": stage.address(), "is_admin": True}, who=stage.root)


@leaves(EventKind.INVITATION, "USER_EMAIL_TAKEN", on="ana", by="root")
async def an_invitation_of_an_owned_address(stage: Stage) -> Action:
    await stage.account()
    return stage.ask("POST", "/api/users", {"email": stage.address()}, who=stage.root)


@leaves(EventKind.INVITATION, "FORBIDDEN", by="eve")
async def an_invitation_by_somebody_who_may_not(stage: Stage) -> Action:
    return stage.ask("POST", "/api/users", {"email": stage.address()}, who=await stage.account("eve"))


@leaves(EventKind.INVITATION, "FIELDS_FORBIDDEN", client="reports", changes="is_admin=true")
async def an_invitation_of_an_administrator_by_a_service(stage: Stage) -> Action:
    body = {"email": stage.address(), "is_admin": True}
    return stage.ask("POST", "/api/users", body, headers=await stage.service_with("users:write"))


@leaves(EventKind.INVITATION_ACCEPTANCE, on="ana", by="ana")
async def an_acceptance(stage: Stage) -> Action:
    body = {"token": await stage.invitation_link(), "password": PASSWORD}
    return stage.ask("POST", "/auth/invitation/accept", body)


@is_counted(EventKind.INVITATION_ACCEPTANCE, "INVALID_TOKEN")
async def an_acceptance_after_another_invitation(stage: Stage) -> Action:
    body = {"token": await stage.invitation_link(), "password": PASSWORD}
    await stage.invitation_link()
    return stage.ask("POST", "/auth/invitation/accept", body)


@leaves(EventKind.INVITATION_ACCEPTANCE, "VALIDATION_ERROR", on="ana", by="ana")
async def an_acceptance_with_a_weak_password(stage: Stage) -> Action:
    body = {"token": await stage.invitation_link(), "password": "short"}
    return stage.ask("POST", "/auth/invitation/accept", body)


@leaves(EventKind.USER_UPDATE, on="ana", by="ana", changes="name")
async def a_new_name(stage: Stage) -> Action:
    ana = await stage.account()
    return stage.ask("PATCH", f"/api/users/{ana.user_id}", {"name": "Ana"}, who=ana)


@leaves(EventKind.USER_UPDATE, on="ana", by="root", changes="name is_active=false is_admin=true")
async def an_update_by_an_administrator(stage: Stage) -> Action:
    body = {"name": "Ana", "is_active": False, "is_admin": True}
    return stage.ask("PATCH", f"/api/users/{(await stage.account()).user_id}", body, who=stage.root)


@leaves(EventKind.USER_UPDATE, on="ana", client="reports", changes="is_active=false")
async def an_update_by_a_service(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("PATCH", path, {"is_active": False}, headers=await stage.service_with("users:write"))


@leaves(EventKind.USER_UPDATE, "FORBIDDEN", on="root", client="reports", changes="is_active=false")
async def an_update_of_an_administrator_by_a_service(stage: Stage) -> Action:
    path = f"/api/users/{stage.root.user_id}"
    return stage.ask("PATCH", path, {"is_active": False}, headers=await stage.service_with("users:write"))


@leaves(EventKind.USER_UPDATE, "FIELDS_FORBIDDEN", on="ana", by="ana", changes="name is_admin=true")
async def an_update_of_ones_own_rights(stage: Stage) -> Action:
    ana = await stage.account()
    return stage.ask("PATCH", f"/api/users/{ana.user_id}", {"name": "Ana", "is_admin": True}, who=ana)


@leaves(EventKind.USER_UPDATE, "FORBIDDEN", on="ana", by="eve", changes="name")
async def an_update_by_the_wrong_person(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("PATCH", path, {"name": "Eve"}, who=await stage.account("eve"))


@leaves(EventKind.USER_UPDATE, "USER_NOT_FOUND", by="root", changes="name")
async def an_update_of_nobody(stage: Stage) -> Action:
    return stage.ask("PATCH", f"/api/users/{NOBODY}", {"name": "Nobody"}, who=stage.root)


@leaves(EventKind.USER_UPDATE, "USER_PENDING", on="ana", by="root", changes="is_admin=true")
async def an_update_before_the_activation(stage: Stage) -> Action:
    return stage.ask("PATCH", f"/api/users/{await stage.pending()}", {"is_admin": True}, who=stage.root)


@leaves(EventKind.USER_UPDATE, "PRECONDITION_FAILED", on="ana", by="ana", changes="name")
async def an_update_of_what_has_changed(stage: Stage) -> Action:
    ana = await stage.account()
    return stage.ask("PATCH", f"/api/users/{ana.user_id}", {"name": "Ana"}, who=ana, headers=OF_BEFORE)


@leaves(EventKind.USER_UPDATE, "LAST_ADMIN", on="root", by="root", changes="name is_admin=false")
async def a_demotion_of_the_last_administrator(stage: Stage) -> Action:
    await stage.only_root()
    path = f"/api/users/{stage.root.user_id}"
    return stage.ask("PATCH", path, {"name": "Nobody", "is_admin": False}, who=stage.root)


@leaves(EventKind.USER_DELETION, by="root")
async def a_deletion(stage: Stage) -> Action:
    return stage.ask("DELETE", f"/api/users/{(await stage.account()).user_id}", who=stage.root)


@leaves(EventKind.USER_DELETION, "FORBIDDEN", on="ana", by="eve")
async def a_deletion_by_somebody_who_may_not(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("DELETE", path, who=await stage.account("eve"))


@leaves(EventKind.USER_DELETION, "PRECONDITION_FAILED", on="ana", by="root")
async def a_deletion_of_who_has_changed(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("DELETE", path, who=stage.root, headers=OF_BEFORE)


@leaves(EventKind.USER_DELETION, "LAST_ADMIN", on="root", by="root")
async def a_deletion_of_the_last_administrator(stage: Stage) -> Action:
    await stage.only_root()
    return stage.ask("DELETE", f"/api/users/{stage.root.user_id}", who=stage.root)


@leaves(EventKind.SECOND_FACTOR_SET_UP, on="ana", by="ana", changes="begun")
async def a_second_factor_begun(stage: Stage) -> Action:
    body = {"current_password": PASSWORD}
    return stage.ask("POST", "/auth/second-factor", body, who=await stage.account())


@leaves(EventKind.SECOND_FACTOR_SET_UP, "WRONG_PASSWORD", on="ana", by="ana", changes="begun")
async def a_second_factor_begun_with_a_wrong_password(stage: Stage) -> Action:
    body = {"current_password": "a-wrong-password"}
    return stage.ask("POST", "/auth/second-factor", body, who=await stage.account())


@leaves(EventKind.SECOND_FACTOR_SET_UP, on="ana", by="ana")
async def a_second_factor_confirmed(stage: Stage) -> Action:
    ana = await stage.account()
    secret = await begin_set_up(stage.service, ana)
    return stage.ask("POST", "/auth/second-factor/confirm", {"code": code_of(secret)}, who=ana)


@leaves(EventKind.SECOND_FACTOR_SET_UP, "WRONG_CODE", on="ana", by="ana")
async def a_second_factor_confirmed_with_a_wrong_code(stage: Stage) -> Action:
    ana = await stage.account()
    await begin_set_up(stage.service, ana)
    return stage.ask("POST", "/auth/second-factor/confirm", {"code": "no code at all"}, who=ana)


@leaves(EventKind.RECOVERY_CODE_RENEWAL, on="ana", by="ana")
async def recovery_codes_made_anew(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/second-factor/recovery-codes", who=await stage.proved_by_code())


@leaves(EventKind.RECOVERY_CODE_RENEWAL, "REAUTHENTICATION_REQUIRED", on="ana", by="ana")
async def new_recovery_codes_without_a_fresh_code(stage: Stage) -> Action:
    ana = await stage.account()
    await add_second_factor(stage.service, ana.user_id)
    return stage.ask("POST", "/auth/second-factor/recovery-codes", who=ana)


@leaves(EventKind.SECOND_FACTOR_REMOVAL, on="ana", by="ana")
async def a_second_factor_removed(stage: Stage) -> Action:
    return stage.ask("DELETE", "/auth/second-factor", who=await stage.proved_by_code())


@leaves(EventKind.SECOND_FACTOR_REMOVAL, "SECOND_FACTOR_NOT_SET", on="ana", by="ana")
async def a_second_factor_removed_that_is_not_set(stage: Stage) -> Action:
    return stage.ask("DELETE", "/auth/second-factor", who=await stage.account())


@leaves(EventKind.SECOND_FACTOR_REMOVAL, on="ana", by="root")
async def a_second_factor_reset(stage: Stage) -> Action:
    ana = await stage.proved_by_code()
    return stage.ask("DELETE", f"/api/users/{ana.user_id}/second-factor", who=stage.root)


@leaves(EventKind.SECOND_FACTOR_REMOVAL, "FORBIDDEN", on="ana", by="eve")
async def a_second_factor_reset_by_somebody_who_may_not(stage: Stage) -> Action:
    ana = await stage.proved_by_code()
    return stage.ask("DELETE", f"/api/users/{ana.user_id}/second-factor", who=await stage.account("eve"))


@leaves(EventKind.REAUTHENTICATION, on="ana", by="ana")
async def a_fresh_proof(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/reauthenticate", {"password": PASSWORD}, who=await stage.account())


@leaves(EventKind.REAUTHENTICATION, "WRONG_PASSWORD", on="ana", by="ana")
async def a_fresh_proof_with_a_wrong_password(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/reauthenticate", {"password": "a-wrong-password"}, who=await stage.account())


@leaves(EventKind.REAUTHENTICATION, "WRONG_CODE", on="ana", by="ana")
async def a_fresh_proof_with_a_wrong_code(stage: Stage) -> Action:
    return stage.ask("POST", "/auth/reauthenticate", {"code": "no code at all"}, who=await stage.proved_by_code())


@leaves(EventKind.USER_CREATION, on="boss", changes="is_admin=true", origin="command line")
async def an_administrator_made_by_command(stage: Stage) -> Action:
    return by_command(
        accounts_of(stage.service), lambda it: it.create_admin(email=stage.address("boss"), password=PASSWORD)
    )


@leaves(EventKind.USER_CREATION, "USER_EMAIL_TAKEN", on="ana", changes="is_admin=true", origin="command line")
async def an_administrator_made_by_command_of_an_owned_address(stage: Stage) -> Action:
    await stage.account()
    return by_command(accounts_of(stage.service), lambda it: it.create_admin(email=stage.address(), password=PASSWORD))


@leaves(EventKind.USER_IMPORT, on="ana", changes="is_admin=true", origin="command line")
async def an_import(stage: Stage) -> Action:
    line = json.dumps({"email": stage.address(), "hashed_password": HASH, "is_admin": True}).encode()
    encryption = runtime_of(stage.service.app).encryption
    return import_people(
        stage.service.database, BytesIO(line), encryption=encryption, is_production=False, report=lambda *_: None
    )


@leaves(EventKind.KEY_ROTATION, changes="an-access-key a-secret", origin="command line")
async def a_rotation_of_keys(stage: Stage) -> Action:
    return by_command(keys_of(stage.service), lambda it: it.record(EventKind.KEY_ROTATION, "an-access-key", "a-secret"))


@leaves(EventKind.KEY_RETIREMENT, changes="an-access-key", origin="command line")
async def a_retirement_of_a_key(stage: Stage) -> Action:
    return by_command(keys_of(stage.service), lambda it: it.record(EventKind.KEY_RETIREMENT, "an-access-key"))


@leaves(EventKind.CLIENT_CREATION, client="reports", origin="command line")
async def another_service(stage: Stage) -> Action:
    return by_command(clients_of(stage.service), lambda it: it.create(name=stage.client_name, scopes=[]))


@leaves(EventKind.CLIENT_CREATION, "CLIENT_NAME_TAKEN", origin="command line")
async def another_service_of_the_same_name(stage: Stage) -> Action:
    await stage.client()
    return by_command(clients_of(stage.service), lambda it: it.create(name=stage.client_name, scopes=[]))


@leaves(EventKind.CLIENT_ROTATION, client="reports", origin="command line")
async def a_new_secret_of_a_service(stage: Stage) -> Action:
    await stage.client()
    return by_command(clients_of(stage.service), lambda it: it.rotate(stage.client_name, overlap=timedelta()))


@leaves(EventKind.CLIENT_ROTATION, "CLIENT_NOT_FOUND", origin="command line")
async def a_new_secret_of_no_service(stage: Stage) -> Action:
    return by_command(clients_of(stage.service), lambda it: it.rotate(stage.client_name, overlap=timedelta()))


@leaves(EventKind.CLIENT_REVOCATION, client="reports", origin="command line")
async def the_end_of_a_service(stage: Stage) -> Action:
    await stage.client()
    return by_command(clients_of(stage.service), lambda it: it.revoke(stage.client_name))


@leaves(EventKind.CLIENT_REVOCATION, "CLIENT_NOT_FOUND", origin="command line")
async def the_end_of_no_service(stage: Stage) -> Action:
    return by_command(clients_of(stage.service), lambda it: it.revoke(stage.client_name))


@leaves(EventKind.CLIENT_TOKEN, client="reports")
async def a_token_for_a_service(stage: Stage) -> Action:
    return post_client_credentials(stage.service, await stage.client("users:read"))


@leaves(EventKind.CLIENT_TOKEN, "INVALID_CLIENT", client="reports")
async def a_token_for_a_service_with_a_wrong_secret(stage: Stage) -> Action:
    return post_client_credentials(stage.service, await stage.client("users:read"), client_secret="wrong")


@is_counted(EventKind.CLIENT_TOKEN, "INVALID_CLIENT")
async def a_token_for_an_unknown_service(stage: Stage) -> Action:
    return post_client_credentials(stage.service, ClientSecret(NOBODY, "wrong"))


@is_counted(EventKind.CLIENT_TOKEN, "INVALID_CLIENT")
async def a_token_for_what_cannot_be_a_service(stage: Stage) -> Action:
    return post_client_credentials(stage.service, ClientSecret(NOBODY, "wrong"), client_id="admin")


@leaves(EventKind.CLIENT_TOKEN, "INVALID_SCOPE", client="reports")
async def a_token_for_more_than_a_service_may(stage: Stage) -> Action:
    return post_client_credentials(stage.service, await stage.client("users:read"), scope="users:write")


@leaves(EventKind.ACCESS_REFUSAL, "FORBIDDEN", by="eve")
async def a_look_into_a_token_by_somebody_who_may_not(stage: Stage) -> Action:
    who = await stage.account("eve")
    return stage.service.client.post("/auth/introspect", data={"token": "x"}, headers=who.bearer)


@leaves(EventKind.LOG_OUT, on="ana", by="ana")
async def a_revocation_of_a_token(stage: Stage) -> Action:
    who = await stage.account()
    return stage.service.client.post("/auth/revoke", data={"token": who.refresh_token})


@leaves(EventKind.ACCESS_REFUSAL, "FORBIDDEN", by="eve")
async def a_look_at_all_users_by_somebody_who_may_not(stage: Stage) -> Action:
    return stage.ask("GET", "/api/users", who=await stage.account("eve"))


@leaves(EventKind.ACCESS_REFUSAL, "FORBIDDEN", by="eve")
async def a_look_at_somebodys_sessions_by_somebody_who_may_not(stage: Stage) -> Action:
    path = f"/api/users/{(await stage.account()).user_id}/sessions"
    return stage.ask("GET", path, who=await stage.account("eve"))


@leaves(EventKind.ACCESS_REFUSAL, "FORBIDDEN", by="eve")
async def a_look_at_the_audit_trail_by_somebody_who_may_not(stage: Stage) -> Action:
    return stage.ask("GET", "/api/audit-events", who=await stage.account("eve"))


@leaves(EventKind.ACCESS_REFUSAL, "INSUFFICIENT_SCOPE", client="reports")
async def a_look_at_the_audit_trail_by_a_service_without_the_scope(stage: Stage) -> Action:
    return stage.ask("GET", "/api/audit-events", headers=await stage.service_with("users:read"))
