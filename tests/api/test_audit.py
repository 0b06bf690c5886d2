"""The event that every act leaves, done or refused; and who may read which."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import pytest
from httpx import ASGITransport, AsyncClient, Request, Response
from sqlalchemy import Row, delete, event, select, text, update

from src.core.exceptions import AppException
from src.core.passwords import hash_password
from src.db import AsyncDatabaseManager, BaseModel
from src.db.base import utc_now
from src.db.models import AuditEventModel, EventKind, EventOutcome, ServiceClientModel, UserModel
from src.services.clients import ClientSecret
from src.services.imports import import_people
from tests.conftest import Service, StartService
from tests.steps import (
    PASSWORD,
    LoggedIn,
    accounts_of,
    activate,
    add_users,
    bearer,
    clients_of,
    count_hashes,
    create_account,
    create_admin,
    create_client,
    expire_links,
    hold,
    log_in,
    post_client_credentials,
    post_log_in,
    post_sign_up,
    refresh,
    refusal,
    service_token,
    sign_up,
    start_waiting,
    token_of,
)

HERE = "127.0.0.1"
HASH = hash_password(PASSWORD, 4)
NOBODY = UUID(int=0)
OF_BEFORE = {"If-Match": '"of-before"'}


# --- the table: what is done, and the event that it leaves ---


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
    mailing: Service
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
        assert self.mailing.mailbox is not None
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
        async with self.service.database.session() as session:
            others = UserModel.id != UUID(self.root.user_id)
            await session.execute(update(UserModel).where(others).values(is_admin=False))
            await session.commit()


# A flow comes to the moment before the act, and hands it over undone.
Act = Coroutine[Any, Any, object]
Flow = Callable[[Stage], Awaitable[Act]]


@dataclass(frozen=True)
class Line:
    flow: Flow
    event: Event
    is_told: bool = True  # the reason is the code in the answer
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
    is_told: bool = True,
    changes_nothing: bool = True,
) -> Callable[[Flow], Flow]:
    event = Event(kind, reason, on, by, client, changes, origin, has_address_hash)

    def add(flow: Flow) -> Flow:
        TABLE.append(Line(flow, event, is_told, changes_nothing))
        return flow

    return add


Opened = TypeVar("Opened")


async def by_command(opened: AbstractAsyncContextManager[Opened], do: Callable[[Opened], Awaitable[object]]) -> None:
    async with opened as service:
        await do(service)


@leaves(EventKind.SIGN_UP, on="ana")
async def a_sign_up(stage: Stage) -> Act:
    return post_sign_up(stage.service, stage.address())


@leaves(EventKind.SIGN_UP, on="ana")
async def a_sign_up_with_an_owned_address_where_the_link_is_mailed(stage: Stage) -> Act:
    await stage.account()
    return post_sign_up(stage.mailing, stage.address())


@leaves(EventKind.SIGN_UP, "USER_EMAIL_TAKEN", on="ana")
async def a_sign_up_with_an_owned_address(stage: Stage) -> Act:
    await stage.account()
    return post_sign_up(stage.service, stage.address())


@leaves(EventKind.SIGN_UP, "VALIDATION_ERROR")
async def a_sign_up_with_a_weak_password(stage: Stage) -> Act:
    return post_sign_up(stage.service, stage.address(), password="short")


@leaves(EventKind.ACTIVATION, on="ana", by="ana")
async def an_activation(stage: Stage) -> Act:
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    return activate(stage.service, token_of(link))


@leaves(EventKind.ACTIVATION, "INVALID_TOKEN")
async def an_activation_with_an_expired_link(stage: Stage) -> Act:
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    await expire_links(stage.service.database)
    return activate(stage.service, token_of(link))


@leaves(EventKind.ACTIVATION, "WRONG_PASSWORD", on="ana", is_told=False)
async def an_activation_of_one_of_two_sign_ups_with_a_wrong_password(stage: Stage) -> Act:
    link = (await sign_up(stage.service, stage.address()))["activation_url"]
    await sign_up(stage.service, stage.address())
    return stage.service.client.post("/activate", data={"token": token_of(link), "password": "of-another-sign-up"})


@leaves(EventKind.LOG_IN, on="ana", by="ana")
async def a_log_in(stage: Stage) -> Act:
    await stage.account()
    return post_log_in(stage.service, stage.address())


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", on="ana")
async def a_log_in_with_a_wrong_password(stage: Stage) -> Act:
    await stage.account()
    return post_log_in(stage.service, stage.address(), "a-wrong-password")


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", on="ana")
async def a_log_in_of_somebody_who_is_disabled(stage: Stage) -> Act:
    await stage.disabled()
    return post_log_in(stage.service, stage.address())


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", has_address_hash=True)
async def a_log_in_before_the_activation(stage: Stage) -> Act:
    await stage.pending()
    return post_log_in(stage.service, stage.address())


@leaves(EventKind.LOG_IN, "INVALID_CREDENTIALS", has_address_hash=True)
async def a_log_in_with_an_unknown_address(stage: Stage) -> Act:
    form = {"grant_type": "password", "username": stage.address(), "password": PASSWORD}
    return stage.service.client.post("/auth/token", data=form)


@leaves(EventKind.LOG_OUT, on="ana", by="ana")
async def a_log_out(stage: Stage) -> Act:
    return stage.ask("POST", "/auth/logout", who=await stage.account())


@leaves(EventKind.LOG_OUT, on="ana", by="ana")
async def a_log_out_by_refresh_token(stage: Stage) -> Act:
    return stage.ask("POST", "/auth/logout", {"refresh_token": (await stage.account()).refresh_token})


@leaves(EventKind.LOG_OUT, "INVALID_REFRESH_TOKEN")
async def a_log_out_by_what_is_no_refresh_token(stage: Stage) -> Act:
    return stage.ask("POST", "/auth/logout", {"refresh_token": "none"})


@leaves(EventKind.REFRESH_REPLAY, "INVALID_REFRESH_TOKEN", on="ana", changes_nothing=False)
async def a_replay_of_a_refresh_token(stage: Stage) -> Act:
    ana = await stage.account()
    second = (await refresh(stage.service, ana.refresh_token)).json()["refresh_token"]
    await refresh(stage.service, second)
    return refresh(stage.service, ana.refresh_token)


@leaves(EventKind.SESSION_REVOCATION, on="ana", by="ana")
async def the_end_of_ones_other_sessions(stage: Stage) -> Act:
    return stage.ask("DELETE", "/auth/sessions", who=await stage.account())


@leaves(EventKind.SESSION_REVOCATION, on="ana", by="ana")
async def the_end_of_a_session(stage: Stage) -> Act:
    ana = await stage.account()
    session = (await stage.ask("GET", "/auth/sessions", who=ana)).json()["items"][0]["id"]
    return stage.ask("DELETE", f"/auth/sessions/{session}", who=ana)


@leaves(EventKind.SESSION_REVOCATION, "SESSION_NOT_FOUND", on="ana", by="ana")
async def the_end_of_somebody_elses_session(stage: Stage) -> Act:
    session = (await stage.ask("GET", "/auth/sessions", who=await stage.account("eve"))).json()["items"][0]["id"]
    return stage.ask("DELETE", f"/auth/sessions/{session}", who=await stage.account())


@leaves(EventKind.SESSION_REVOCATION, on="ana", by="root")
async def a_log_out_everywhere_by_an_administrator(stage: Stage) -> Act:
    return stage.ask("DELETE", f"/api/users/{(await stage.account()).user_id}/sessions", who=stage.root)


@leaves(EventKind.SESSION_REVOCATION, "INSUFFICIENT_SCOPE", on="ana", client="reports")
async def a_log_out_everywhere_by_a_service_without_the_scope(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.account()).user_id}/sessions"
    return stage.ask("DELETE", path, headers=await stage.service_with("users:read"))


@leaves(EventKind.PASSWORD_CHANGE, on="ana", by="ana")
async def a_password_change(stage: Stage) -> Act:
    body = {"current_password": PASSWORD, "new_password": "another-password"}
    return stage.ask("POST", "/auth/password-change", body, who=await stage.account())


@leaves(EventKind.PASSWORD_CHANGE, "WRONG_PASSWORD", on="ana", by="ana")
async def a_password_change_with_a_wrong_password(stage: Stage) -> Act:
    body = {"current_password": "a-wrong-password", "new_password": "another-password"}
    return stage.ask("POST", "/auth/password-change", body, who=await stage.account())


@leaves(EventKind.PASSWORD_CHANGE, "VALIDATION_ERROR", on="ana", by="ana")
async def a_password_change_to_a_weak_one(stage: Stage) -> Act:
    body = {"current_password": PASSWORD, "new_password": "short"}
    return stage.ask("POST", "/auth/password-change", body, who=await stage.account())


@leaves(EventKind.PASSWORD_RESET_REQUEST, on="ana")
async def a_request_for_a_reset(stage: Stage) -> Act:
    await stage.account()
    return stage.ask("POST", "/auth/password-reset/request", {"email": stage.address()})


@leaves(EventKind.PASSWORD_RESET_REQUEST, "USER_NOT_FOUND", has_address_hash=True, is_told=False)
async def a_request_for_a_reset_of_an_unknown_address(stage: Stage) -> Act:
    return stage.ask("POST", "/auth/password-reset/request", {"email": stage.address()})


@leaves(EventKind.PASSWORD_RESET_REQUEST, "USER_DISABLED", on="ana", is_told=False)
async def a_request_for_a_reset_of_somebody_who_is_disabled(stage: Stage) -> Act:
    await stage.disabled()
    return stage.ask("POST", "/auth/password-reset/request", {"email": stage.address()})


@leaves(EventKind.PASSWORD_RESET_REQUEST, on="ana", by="root")
async def a_reset_that_an_administrator_asks_for(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.account()).user_id}/password-reset"
    return stage.mailing.client.post(path, headers=stage.root.bearer)


@leaves(EventKind.PASSWORD_RESET_REQUEST, "USER_PENDING", on="ana", by="root")
async def a_reset_that_an_administrator_asks_for_before_the_activation(stage: Stage) -> Act:
    return stage.mailing.client.post(f"/api/users/{await stage.pending()}/password-reset", headers=stage.root.bearer)


@leaves(EventKind.PASSWORD_RESET_REQUEST, "USER_DISABLED", on="ana", by="root")
async def a_reset_that_an_administrator_asks_for_somebody_disabled(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.disabled()).user_id}/password-reset"
    return stage.mailing.client.post(path, headers=stage.root.bearer)


@leaves(EventKind.PASSWORD_RESET_REQUEST, "FORBIDDEN", on="ana", by="eve")
async def a_reset_that_somebody_else_asks_for(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.account()).user_id}/password-reset"
    return stage.ask("POST", path, who=await stage.account("eve"))


@leaves(EventKind.PASSWORD_RESET, on="ana", by="ana")
async def a_reset(stage: Stage) -> Act:
    await stage.account()
    body = {"token": await stage.reset_link(), "new_password": "another-password"}
    return stage.ask("POST", "/auth/password-reset/confirm", body)


@leaves(EventKind.PASSWORD_RESET, "INVALID_TOKEN")
async def a_reset_with_a_used_link(stage: Stage) -> Act:
    await stage.account()
    body = {"token": await stage.reset_link(), "new_password": "another-password"}
    await stage.ask("POST", "/auth/password-reset/confirm", body)
    return stage.ask("POST", "/auth/password-reset/confirm", body)


@leaves(EventKind.PASSWORD_RESET, "INVALID_TOKEN")
async def a_reset_with_an_expired_link(stage: Stage) -> Act:
    await stage.account()
    body = {"token": await stage.reset_link(), "new_password": "another-password"}
    await expire_links(stage.service.database)
    return stage.ask("POST", "/auth/password-reset/confirm", body)


@leaves(EventKind.PASSWORD_RESET, "VALIDATION_ERROR", on="ana", by="ana")
async def a_reset_to_a_weak_password(stage: Stage) -> Act:
    await stage.account()
    return stage.ask(
        "POST", "/auth/password-reset/confirm", {"token": await stage.reset_link(), "new_password": "short"}
    )


@leaves(EventKind.EMAIL_CHANGE_REQUEST, on="ana", by="ana")
async def a_request_for_an_email_change(stage: Stage) -> Act:
    body = {"new_email": stage.address("moved"), "current_password": PASSWORD}
    return stage.ask("POST", "/auth/email-change/request", body, who=await stage.account())


@leaves(EventKind.EMAIL_CHANGE_REQUEST, "WRONG_PASSWORD", on="ana", by="ana")
async def a_request_for_an_email_change_with_a_wrong_password(stage: Stage) -> Act:
    body = {"new_email": stage.address("moved"), "current_password": "a-wrong-password"}
    return stage.ask("POST", "/auth/email-change/request", body, who=await stage.account())


@leaves(EventKind.EMAIL_CHANGE_REQUEST, "VALIDATION_ERROR", on="ana", by="ana")
async def a_request_to_keep_ones_address(stage: Stage) -> Act:
    body = {"new_email": stage.address(), "current_password": PASSWORD}
    return stage.ask("POST", "/auth/email-change/request", body, who=await stage.account())


@leaves(EventKind.EMAIL_CHANGE, on="ana-moved", by="ana-moved")
async def an_email_change(stage: Stage) -> Act:
    token = await stage.email_change_link(await stage.account(), stage.address("ana-moved"))
    return stage.ask("POST", "/auth/email-change/confirm", {"token": token})


@leaves(EventKind.EMAIL_CHANGE, "INVALID_TOKEN", on="ana", by="ana")
async def an_email_change_that_loses_the_address(stage: Stage) -> Act:
    token = await stage.email_change_link(await stage.account(), stage.address("eve"))
    await stage.account("eve")
    return stage.ask("POST", "/auth/email-change/confirm", {"token": token})


@leaves(EventKind.EMAIL_CHANGE, "INVALID_TOKEN")
async def an_email_change_with_an_expired_link(stage: Stage) -> Act:
    token = await stage.email_change_link(await stage.account(), stage.address("moved"))
    await expire_links(stage.service.database)
    return stage.ask("POST", "/auth/email-change/confirm", {"token": token})


@leaves(EventKind.EMAIL_REVERT, on="ana", by="ana")
async def an_email_change_undone(stage: Stage) -> Act:
    return stage.ask("POST", "/auth/email-change/revert", {"token": await stage.email_revert_link()})


@leaves(EventKind.EMAIL_REVERT, "INVALID_TOKEN", on="ana-moved", by="ana-moved")
async def an_email_change_that_cannot_be_undone_as_the_address_is_owned(stage: Stage) -> Act:
    token = await stage.email_revert_link()
    await stage.account()
    return stage.ask("POST", "/auth/email-change/revert", {"token": token})


@leaves(EventKind.ACCOUNT_DELETION, origin=None)
async def a_departure(stage: Stage) -> Act:
    body = {"current_password": PASSWORD}
    return stage.ask("POST", "/auth/delete-account", body, who=await stage.account())


@leaves(EventKind.ACCOUNT_DELETION, "WRONG_PASSWORD", on="ana", by="ana")
async def a_departure_with_a_wrong_password(stage: Stage) -> Act:
    body = {"current_password": "a-wrong-password"}
    return stage.ask("POST", "/auth/delete-account", body, who=await stage.account())


@leaves(EventKind.ACCOUNT_DELETION, "LAST_ADMIN", on="root", by="root")
async def a_departure_of_the_last_administrator(stage: Stage) -> Act:
    await stage.only_root()
    return stage.ask("POST", "/auth/delete-account", {"current_password": PASSWORD}, who=stage.root)


@leaves(EventKind.INVITATION, on="ana", by="root")
async def an_invitation(stage: Stage) -> Act:
    return stage.ask("POST", "/api/users", {"email": stage.address()}, who=stage.root)


@leaves(EventKind.INVITATION, on="ana", by="root", changes="is_admin=true")
async def an_invitation_of_an_administrator(stage: Stage) -> Act:
    return stage.ask("POST", "/api/users", {"email": stage.address(), "is_admin": True}, who=stage.root)


@leaves(EventKind.INVITATION, "USER_EMAIL_TAKEN", on="ana", by="root")
async def an_invitation_of_an_owned_address(stage: Stage) -> Act:
    await stage.account()
    return stage.ask("POST", "/api/users", {"email": stage.address()}, who=stage.root)


@leaves(EventKind.INVITATION, "FORBIDDEN", by="eve")
async def an_invitation_by_somebody_who_may_not(stage: Stage) -> Act:
    return stage.ask("POST", "/api/users", {"email": stage.address()}, who=await stage.account("eve"))


@leaves(EventKind.INVITATION, "FIELDS_FORBIDDEN", client="reports", changes="is_admin=true")
async def an_invitation_of_an_administrator_by_a_service(stage: Stage) -> Act:
    body = {"email": stage.address(), "is_admin": True}
    return stage.ask("POST", "/api/users", body, headers=await stage.service_with("users:write"))


@leaves(EventKind.INVITATION_ACCEPTANCE, on="ana", by="ana")
async def an_acceptance(stage: Stage) -> Act:
    body = {"token": await stage.invitation_link(), "password": PASSWORD}
    return stage.ask("POST", "/auth/invitation/accept", body)


@leaves(EventKind.INVITATION_ACCEPTANCE, "INVALID_TOKEN")
async def an_acceptance_after_another_invitation(stage: Stage) -> Act:
    body = {"token": await stage.invitation_link(), "password": PASSWORD}
    await stage.invitation_link()
    return stage.ask("POST", "/auth/invitation/accept", body)


@leaves(EventKind.INVITATION_ACCEPTANCE, "VALIDATION_ERROR", on="ana", by="ana")
async def an_acceptance_with_a_weak_password(stage: Stage) -> Act:
    body = {"token": await stage.invitation_link(), "password": "short"}
    return stage.ask("POST", "/auth/invitation/accept", body)


@leaves(EventKind.USER_UPDATE, on="ana", by="ana", changes="name")
async def a_new_name(stage: Stage) -> Act:
    ana = await stage.account()
    return stage.ask("PATCH", f"/api/users/{ana.user_id}", {"name": "Ana"}, who=ana)


@leaves(EventKind.USER_UPDATE, on="ana", by="root", changes="name is_active=false is_admin=true")
async def an_update_by_an_administrator(stage: Stage) -> Act:
    body = {"name": "Ana", "is_active": False, "is_admin": True}
    return stage.ask("PATCH", f"/api/users/{(await stage.account()).user_id}", body, who=stage.root)


@leaves(EventKind.USER_UPDATE, on="ana", client="reports", changes="is_active=false")
async def an_update_by_a_service(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("PATCH", path, {"is_active": False}, headers=await stage.service_with("users:write"))


@leaves(EventKind.USER_UPDATE, "FORBIDDEN", on="root", client="reports", changes="is_active=false")
async def an_update_of_an_administrator_by_a_service(stage: Stage) -> Act:
    path = f"/api/users/{stage.root.user_id}"
    return stage.ask("PATCH", path, {"is_active": False}, headers=await stage.service_with("users:write"))


@leaves(EventKind.USER_UPDATE, "FIELDS_FORBIDDEN", on="ana", by="ana", changes="name is_admin=true")
async def an_update_of_ones_own_rights(stage: Stage) -> Act:
    ana = await stage.account()
    return stage.ask("PATCH", f"/api/users/{ana.user_id}", {"name": "Ana", "is_admin": True}, who=ana)


@leaves(EventKind.USER_UPDATE, "FORBIDDEN", on="ana", by="eve", changes="name")
async def an_update_by_the_wrong_person(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("PATCH", path, {"name": "Eve"}, who=await stage.account("eve"))


@leaves(EventKind.USER_UPDATE, "USER_NOT_FOUND", by="root", changes="name")
async def an_update_of_nobody(stage: Stage) -> Act:
    return stage.ask("PATCH", f"/api/users/{NOBODY}", {"name": "Nobody"}, who=stage.root)


@leaves(EventKind.USER_UPDATE, "USER_PENDING", on="ana", by="root", changes="is_admin=true")
async def an_update_before_the_activation(stage: Stage) -> Act:
    return stage.ask("PATCH", f"/api/users/{await stage.pending()}", {"is_admin": True}, who=stage.root)


@leaves(EventKind.USER_UPDATE, "PRECONDITION_FAILED", on="ana", by="ana", changes="name")
async def an_update_of_what_has_changed(stage: Stage) -> Act:
    ana = await stage.account()
    return stage.ask("PATCH", f"/api/users/{ana.user_id}", {"name": "Ana"}, who=ana, headers=OF_BEFORE)


@leaves(EventKind.USER_UPDATE, "LAST_ADMIN", on="root", by="root", changes="name is_admin=false")
async def a_demotion_of_the_last_administrator(stage: Stage) -> Act:
    await stage.only_root()
    path = f"/api/users/{stage.root.user_id}"
    return stage.ask("PATCH", path, {"name": "Nobody", "is_admin": False}, who=stage.root)


@leaves(EventKind.USER_DELETION, by="root")
async def a_deletion(stage: Stage) -> Act:
    return stage.ask("DELETE", f"/api/users/{(await stage.account()).user_id}", who=stage.root)


@leaves(EventKind.USER_DELETION, "FORBIDDEN", on="ana", by="eve")
async def a_deletion_by_somebody_who_may_not(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("DELETE", path, who=await stage.account("eve"))


@leaves(EventKind.USER_DELETION, "PRECONDITION_FAILED", on="ana", by="root")
async def a_deletion_of_who_has_changed(stage: Stage) -> Act:
    path = f"/api/users/{(await stage.account()).user_id}"
    return stage.ask("DELETE", path, who=stage.root, headers=OF_BEFORE)


@leaves(EventKind.USER_DELETION, "LAST_ADMIN", on="root", by="root")
async def a_deletion_of_the_last_administrator(stage: Stage) -> Act:
    await stage.only_root()
    return stage.ask("DELETE", f"/api/users/{stage.root.user_id}", who=stage.root)


@leaves(EventKind.USER_CREATION, on="boss", changes="is_admin=true", origin="command line")
async def an_administrator_made_by_command(stage: Stage) -> Act:
    return by_command(
        accounts_of(stage.service), lambda it: it.create_admin(email=stage.address("boss"), password=PASSWORD)
    )


@leaves(EventKind.USER_CREATION, "USER_EMAIL_TAKEN", on="ana", changes="is_admin=true", origin="command line")
async def an_administrator_made_by_command_of_an_owned_address(stage: Stage) -> Act:
    await stage.account()
    return by_command(accounts_of(stage.service), lambda it: it.create_admin(email=stage.address(), password=PASSWORD))


@leaves(EventKind.USER_IMPORT, on="ana", changes="is_admin=true", origin="command line")
async def an_import(stage: Stage) -> Act:
    line = json.dumps({"email": stage.address(), "hashed_password": HASH, "is_admin": True}).encode()
    return import_people(stage.service.database, BytesIO(line), report=lambda *_: None)


@leaves(EventKind.CLIENT_CREATION, client="reports", origin="command line")
async def another_service(stage: Stage) -> Act:
    return by_command(clients_of(stage.service), lambda it: it.create(name=stage.client_name, scopes=[]))


@leaves(EventKind.CLIENT_CREATION, "CLIENT_NAME_TAKEN", origin="command line")
async def another_service_of_the_same_name(stage: Stage) -> Act:
    await stage.client()
    return by_command(clients_of(stage.service), lambda it: it.create(name=stage.client_name, scopes=[]))


@leaves(EventKind.CLIENT_ROTATION, client="reports", origin="command line")
async def a_new_secret_of_a_service(stage: Stage) -> Act:
    await stage.client()
    return by_command(clients_of(stage.service), lambda it: it.rotate(stage.client_name, overlap=timedelta()))


@leaves(EventKind.CLIENT_ROTATION, "CLIENT_NOT_FOUND", origin="command line")
async def a_new_secret_of_no_service(stage: Stage) -> Act:
    return by_command(clients_of(stage.service), lambda it: it.rotate(stage.client_name, overlap=timedelta()))


@leaves(EventKind.CLIENT_REVOCATION, client="reports", origin="command line")
async def the_end_of_a_service(stage: Stage) -> Act:
    await stage.client()
    return by_command(clients_of(stage.service), lambda it: it.revoke(stage.client_name))


@leaves(EventKind.CLIENT_REVOCATION, "CLIENT_NOT_FOUND", origin="command line")
async def the_end_of_no_service(stage: Stage) -> Act:
    return by_command(clients_of(stage.service), lambda it: it.revoke(stage.client_name))


@leaves(EventKind.CLIENT_TOKEN, client="reports")
async def a_token_for_a_service(stage: Stage) -> Act:
    return post_client_credentials(stage.service, await stage.client("users:read"))


@leaves(EventKind.CLIENT_TOKEN, "INVALID_CLIENT", client="reports")
async def a_token_for_a_service_with_a_wrong_secret(stage: Stage) -> Act:
    return post_client_credentials(stage.service, await stage.client("users:read"), client_secret="wrong")


@leaves(EventKind.CLIENT_TOKEN, "INVALID_CLIENT")
async def a_token_for_an_unknown_service(stage: Stage) -> Act:
    return post_client_credentials(stage.service, ClientSecret(NOBODY, "wrong"))


@leaves(EventKind.CLIENT_TOKEN, "INVALID_CLIENT")
async def a_token_for_what_cannot_be_a_service(stage: Stage) -> Act:
    return post_client_credentials(stage.service, ClientSecret(NOBODY, "wrong"), client_id="admin")


@leaves(EventKind.CLIENT_TOKEN, "INVALID_SCOPE", client="reports")
async def a_token_for_more_than_a_service_may(stage: Stage) -> Act:
    return post_client_credentials(stage.service, await stage.client("users:read"), scope="users:write")


async def test_every_act_leaves_its_event_with_nothing_secret_and_a_refused_one_nothing_else(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service = await start_service(auth_return_token_in_response=True)
    mailing = await start_service(mail=True)
    secrets = listen_for_secrets(service, mailing)
    root = await create_admin(service, "root@example.com")
    left: dict[str, list[Event]] = {}
    told: dict[str, str | None] = {}
    also_changed: list[str] = []

    for number, line in enumerate(TABLE):
        name = line.flow.__name__
        act = await line.flow(Stage(service, mailing, root, number))
        before, newest = await everything_else(database), await newest_event(database)
        secrets |= stored_secrets(before)
        told[name] = await code_told(act)
        left[name] = await events_since(database, newest)
        if line.event.reason and line.changes_nothing and await everything_else(database) != before:
            also_changed.append(name)

    assert left == {line.flow.__name__: [line.event] for line in TABLE}
    reasons = {line.flow.__name__: line.event.reason for line in TABLE if line.is_told}
    assert {name: told[name] for name in reasons} == reasons
    assert also_changed == []
    events = await dump(database, "audit_events")
    assert len(secrets) > 250
    assert {secret for secret in secrets if secret in events} == set()


def test_no_kind_of_event_is_missing_from_the_table() -> None:
    assert {line.event.kind for line in TABLE} == set(EventKind)


def test_every_kind_is_shown_done_and_refused_where_it_can_be() -> None:
    assert set(EventKind) - {line.event.kind for line in TABLE if line.event.reason is None} == {
        EventKind.REFRESH_REPLAY
    }
    assert set(EventKind) - {line.event.kind for line in TABLE if line.event.reason} == {EventKind.USER_IMPORT}


SECRET_OR_PERSONAL = (
    *("password", "current_password", "new_password", "email", "new_email", "username", "name"),
    *("token", "access_token", "refresh_token", "client_secret"),
)


def listen_for_secrets(*services: Service) -> set[str]:
    """Grows with all that is sent and answered and must be in no event."""
    heard: set[str] = set()

    async def hear_request(request: Request) -> None:
        body = request.content.decode()
        hear(json.loads(body) if body.startswith("{") else dict(parse_qsl(body)))

    async def hear_response(response: Response) -> None:
        await response.aread()
        hear(response.json() if response.text.startswith("{") else {})

    def hear(fields: dict[str, Any]) -> None:
        heard.update(fields[name] for name in SECRET_OR_PERSONAL if fields.get(name))
        heard.update(token_of(url) for name, url in fields.items() if name.endswith("_url") and url)

    for service in services:
        service.client.event_hooks["request"].append(hear_request)
        service.client.event_hooks["response"].append(hear_response)
    return heard


def stored_secrets(tables: dict[str, Sequence[Row[Any]]]) -> set[str]:
    return {
        *(row.hashed_password for row in tables["users"]),
        *(row.token_hash for row in tables["user_tokens"]),
        *(row.secret_hash for row in tables["service_clients"]),
    }


async def code_told(act: Act) -> str | None:
    """The code of a refusal, over HTTP or not."""
    try:
        answer = await act
    except AppException as refusal:
        return refusal.code
    if isinstance(answer, Response) and answer.status_code >= 400 and answer.text.startswith("{"):
        return str(answer.json()["code"])
    return None


async def everything_else(database: AsyncDatabaseManager) -> dict[str, Sequence[Row[Any]]]:
    """What is stored, but for the audit trail."""
    async with database.session() as session:
        return {
            name: (await session.execute(table.select().order_by(table.c.id))).all()
            for name, table in BaseModel.metadata.tables.items()
            if name != AuditEventModel.__tablename__
        }


async def list_events(database: AsyncDatabaseManager) -> Sequence[AuditEventModel]:
    """The newest first."""
    async with database.session() as session:
        return (await session.scalars(select(AuditEventModel).order_by(AuditEventModel.id.desc()))).all()


async def newest_event(database: AsyncDatabaseManager) -> UUID:
    return next((event.id for event in await list_events(database)), NOBODY)


async def events_since(database: AsyncDatabaseManager, newest: UUID) -> list[Event]:
    """By name: of a person, what is before the @ of the address; of a service, what is before the number."""
    async with database.session() as session:
        people = (await session.execute(select(UserModel.id, UserModel.email))).all()
        services = (await session.execute(select(ServiceClientModel.id, ServiceClientModel.name))).all()
        new = select(AuditEventModel).where(AuditEventModel.id > newest).order_by(AuditEventModel.id)
        events = (await session.scalars(new)).all()
    assert {event.outcome for event in events if event.reason} <= {"failure"}
    assert {event.outcome for event in events if not event.reason} <= {"success"}
    names: dict[UUID | None, str] = {id_: email.partition("@")[0] for id_, email in people}
    names |= {id_: name.partition("-")[0] for id_, name in services}
    return [
        Event(
            kind=EventKind(event.kind),
            reason=event.reason,
            on=names.get(event.user_id),
            by=names.get(event.actor_id),
            client=names.get(event.client_id),
            changes=event.changes,
            origin=event.origin,
            has_address_hash=event.address_hash is not None,
        )
        for event in events
    ]


# --- what an event tells of people, and what it never does ---


async def test_that_the_service_is_busy_is_no_refusal(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service = await start_service(auth_hash_threads=1, auth_hash_queue_size=2)
    gate = asyncio.get_running_loop().create_future()
    holding = await hold(service.app.state.hash_pool, gate, jobs=3)

    response = await post_log_in(service)

    gate.set_result(None)
    await asyncio.gather(*holding)
    assert response.status_code == 503
    assert await list_events(database) == []


async def test_the_zone_of_an_ipv6_address_is_not_stored(service: Service, database: AsyncDatabaseManager) -> None:
    transport = ASGITransport(app=service.app, client=("fe80::1%" + "z" * 50, 1))
    await create_account(service)

    async with AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/auth/login", json={"email": "ana@example.com", "password": PASSWORD})

    assert response.status_code == 200
    assert (await list_events(database))[0].origin == "fe80::1"


class TestAnUnknownAddress:
    async def test_is_stored_as_a_hash_that_nobody_else_can_make(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await post_log_in(service, "ghost@example.com")
        await post_log_in(service, "Ghost@EXAMPLE.com")
        await post_log_in(service, "spirit@example.com")

        spirit, again, ghost = [event.address_hash for event in await list_events(database)]

        assert ghost == again != spirit
        assert ghost is not None
        assert len(bytes.fromhex(ghost)) == 32
        guessable = [b"", b"fingerprint", b"audit", b"address", service.app.state.settings.issuer.encode()]
        assert ghost not in [hmac.digest(key, b"ghost@example.com", "sha256").hex() for key in guessable]
        assert ghost != hashlib.sha256(b"ghost@example.com").hexdigest()

    async def test_is_in_no_table(self, service: Service, database: AsyncDatabaseManager) -> None:
        await post_log_in(service, "ghost@example.com")
        await service.client.post("/auth/password-reset/request", json={"email": "ghost@example.com"})

        assert "ghost" not in await dump(database)

    async def test_costs_a_log_in_the_same_statements(self, service: Service) -> None:
        await create_account(service)
        root = await create_admin(service)
        disabled = await create_account(service, "disabled@example.com")
        await service.client.patch(f"/api/users/{disabled}", json={"is_active": False}, headers=root.bearer)

        asked = {
            name: await count_statements(service, post_log_in(service, f"{name}@example.com", password))
            for name, password in (("ana", "a-wrong-password"), ("ghost", PASSWORD), ("disabled", PASSWORD))
        }

        assert asked["ana"] > 0
        assert set(asked.values()) == {asked["ana"]}


async def count_statements(service: Service, request: Awaitable[Response]) -> int:
    statements: list[str] = []
    engine = service.database.engine.sync_engine

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    await request
    event.remove(engine, "before_cursor_execute", note)
    return len(statements)


async def dump(database: AsyncDatabaseManager, *names: str) -> str:
    """All that is stored in these tables (or in all) as one text."""
    tables = [table for table in BaseModel.metadata.sorted_tables if not names or table.name in names]
    async with database.session() as session:
        rows = [(await session.execute(table.select())).all() for table in tables]
    return str(rows)


class TestWhoIsGone:
    async def test_an_act_that_is_refused_when_its_caller_is_gone_leaves_an_event_of_nobody(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(service)
        ana, root = await log_in(service), await create_admin(service)
        pool = count_hashes(service)
        gate = asyncio.get_running_loop().create_future()
        holding = await hold(pool, gate, jobs=3)
        body = {"current_password": PASSWORD, "new_password": "another-password"}
        change = await start_waiting(pool, service.client.post("/auth/password-change", json=body, headers=ana.bearer))
        deletion = await service.client.delete(f"/api/users/{ana.user_id}", headers=root.bearer)

        gate.set_result(None)
        response = await change

        await asyncio.gather(*holding)
        assert deletion.status_code == 204
        assert (response.status_code, response.json()["code"]) == (401, "INVALID_ACCESS_TOKEN")
        event = (await events_since(database, NOBODY))[-1]
        assert event == Event(EventKind.PASSWORD_CHANGE, "INVALID_ACCESS_TOKEN", origin=None)

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_a_refusal_waits_to_see_whether_who_is_being_deleted_is_gone(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = UUID(await create_account(service))
        async with database.session() as deleting:
            await deleting.execute(delete(UserModel).where(UserModel.id == user_id))

            refused = asyncio.create_task(post_log_in(service, password="a-wrong-password"))
            while not (await deleting.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))):
                assert not refused.done()
            await deleting.commit()

        assert (await refused).status_code == 401
        event = (await events_since(database, NOBODY))[-1]
        assert event == Event(EventKind.LOG_IN, "INVALID_CREDENTIALS", origin=None)

    async def test_somebody_who_leaves_is_taken_out_of_every_event(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = await create_account(service)
        await post_log_in(service, password="a-wrong-password")
        ana = await log_in(service)
        await service.client.patch(f"/api/users/{NOBODY}", json={"name": "Ana"}, headers=ana.bearer)

        await service.client.post("/auth/delete-account", json={"current_password": PASSWORD}, headers=ana.bearer)

        assert user_id.replace("-", "") not in (await dump(database, "audit_events")).replace("-", "")
        assert await events_since(database, NOBODY) == [
            Event(EventKind.SIGN_UP, origin=None),
            Event(EventKind.ACTIVATION, origin=None),
            Event(EventKind.LOG_IN, "INVALID_CREDENTIALS", origin=None),
            Event(EventKind.LOG_IN, origin=None),
            Event(EventKind.USER_UPDATE, "FORBIDDEN", changes="name", origin=None),
            Event(EventKind.ACCOUNT_DELETION, origin=None),
        ]

    async def test_an_administrators_and_a_services_own_origin_stays_on_what_they_did(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = await create_account(service)
        root = await create_admin(service, "root@example.com")
        headers = bearer(await service_token(service, await create_client(service, "users:write")))
        newest = await newest_event(database)
        await service.client.patch(f"/api/users/{user_id}", json={"name": "Ana"}, headers=headers)
        await service.client.patch(f"/api/users/{user_id}", json={"name": "Eve"}, headers=root.bearer)

        await service.client.delete(f"/api/users/{user_id}", headers=root.bearer)

        assert await events_since(database, newest) == [
            Event(EventKind.USER_UPDATE, client="reports", changes="name"),
            Event(EventKind.USER_UPDATE, by="root", changes="name"),
            Event(EventKind.USER_DELETION, by="root"),
        ]

    async def test_an_administrator_who_is_removed_is_taken_out_of_what_they_did(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        user_id = await create_account(service)
        boss = await create_admin(service, "boss@example.com")
        root = await create_admin(service, "root@example.com")
        newest = await newest_event(database)
        await service.client.patch(f"/api/users/{user_id}", json={"name": "Ana"}, headers=boss.bearer)

        await service.client.delete(f"/api/users/{boss.user_id}", headers=root.bearer)

        assert await events_since(database, newest) == [
            Event(EventKind.USER_UPDATE, on="ana", changes="name", origin=None),
            Event(EventKind.USER_DELETION, by="root"),
        ]

    async def test_that_it_was_the_command_line_is_nobodys_secret(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        boss, root = await create_admin(service, "boss@example.com"), await create_admin(service, "root@example.com")

        await service.client.delete(f"/api/users/{boss.user_id}", headers=root.bearer)

        creation = (await events_since(database, NOBODY))[0]
        assert creation == Event(EventKind.USER_CREATION, changes="is_admin=true", origin="command line")


# --- reading them ---


async def test_events_are_listed_the_newest_first_page_by_page(service: Service) -> None:
    root = await create_admin(service)
    for _ in range(4):
        await post_log_in(service)

    pages = [(await get_events(service, root, limit=3)).json()]
    while pages[-1]["next_cursor"]:
        await post_log_in(service)  # what comes meanwhile is newer than any page
        pages.append((await get_events(service, root, limit=3, cursor=pages[-1]["next_cursor"])).json())

    listed = [event for page in pages for event in page["items"]]
    assert [len(page["items"]) for page in pages] == [3, 3]
    assert [(event["kind"], event["outcome"]) for event in listed] == [
        *[("log_in", "failure")] * 4,
        ("log_in", "success"),
        ("user_creation", "success"),
    ]
    assert [event["id"] for event in listed] == sorted({event["id"] for event in listed}, reverse=True)


async def test_events_are_filtered_by_all_that_is_given(service: Service, database: AsyncDatabaseManager) -> None:
    ana, root = await create_account(service), await create_admin(service)
    client = await create_client(service, "users:write")
    headers = bearer(await service_token(service, client))
    for body in ({"name": "Ana"}, {"is_admin": True}):
        await service.client.patch(f"/api/users/{ana}", json=body, headers=headers)
        await service.client.patch(f"/api/users/{ana}", json=body, headers=root.bearer)
    middle = (await list_events(database))[3].created_at

    async def kinds(**query: str) -> list[str]:
        return [event["kind"] for event in (await get_events(service, root, **query)).json()["items"]]

    assert {
        "nothing": await kinds(),
        "user_id": await kinds(user_id=ana),
        "actor_id": await kinds(actor_id=root.user_id),
        "client_id": await kinds(client_id=str(client.client_id)),
        "kind": await kinds(kind="activation"),
        "outcome": await kinds(outcome="failure"),
        "since": await kinds(since=middle.isoformat()),
        "until": await kinds(until=middle.isoformat()),
        "several": await kinds(user_id=ana, outcome="failure", client_id=str(client.client_id)),
        "nobody": await kinds(user_id=str(NOBODY)),
    } == {
        "nothing": [*UPDATES, "client_token", "client_creation", "log_in", "user_creation", "activation", "sign_up"],
        "user_id": [*UPDATES, "activation", "sign_up"],
        "actor_id": ["user_update", "user_update", "log_in"],
        "client_id": ["user_update", "user_update", "client_token", "client_creation"],
        "kind": ["activation"],
        "outcome": ["user_update"],
        "since": UPDATES,
        "until": ["client_token", "client_creation", "log_in", "user_creation", "activation", "sign_up"],
        "several": ["user_update"],
        "nobody": [],
    }


UPDATES = ["user_update"] * 4


async def test_what_cannot_be_filtered_by_is_a_422_that_names_it(service: Service) -> None:
    root = await create_admin(service)
    wrong = {
        "limit": ["0", "101", "many"],
        "cursor": ["", "none", "AAAA", "A" * 22 + "=="],
        "kind": ["everything", "LOG_IN"],
        "outcome": ["perhaps"],
        "since": ["2026-01-01T12:00:00", "2026-01-01", "yesterday"],
        "until": ["2026-01-01T12:00:00"],
        "user_id": ["ana"],
        "actor_id": ["1"],
        "client_id": ["reports"],
    }

    refusals = {
        (name, value): refusal(await get_events(service, root, **{name: value}))
        for name, values in wrong.items()
        for value in values
    }

    assert refusals == {key: (422, "VALIDATION_ERROR", [f"query.{key[0]}"]) for key in refusals}


async def test_a_page_holds_as_many_events_as_are_asked_for_and_fifty_otherwise(
    service: Service, database: AsyncDatabaseManager
) -> None:
    root = await create_admin(service)
    async with database.session() as session:
        session.add_all(AuditEventModel(kind=EventKind.LOG_OUT, outcome=EventOutcome.SUCCESS) for _ in range(101))
        await session.commit()

    pages = [await get_events(service, root, **query) for query in ({"limit": 100}, {}, {"limit": 1})]

    assert [len(page.json()["items"]) for page in pages] == [100, 50, 1]


async def test_only_administrators_and_services_with_the_scope_read_the_trail(service: Service) -> None:
    await create_account(service)
    ana, root = await log_in(service), await create_admin(service)
    auditor = await create_client(service, "audit:read", name="auditor")
    other = await create_client(service, "users:read", "users:write", name="other")
    headers = {
        "nobody": {},
        "somebody": ana.bearer,
        "an administrator": root.bearer,
        "an auditor": bearer(await service_token(service, auditor)),
        "another service": bearer(await service_token(service, other)),
    }

    answers = {who: await service.client.get("/api/audit-events", headers=header) for who, header in headers.items()}

    assert {who: (answer.status_code, answer.json().get("code")) for who, answer in answers.items()} == {
        "nobody": (401, "UNAUTHORIZED"),
        "somebody": (403, "FORBIDDEN"),
        "an administrator": (200, None),
        "an auditor": (200, None),
        "another service": (403, "INSUFFICIENT_SCOPE"),
    }


class TestOnesOwnEvents:
    async def test_are_those_about_oneself_and_do_not_tell_who_else_acted_or_from_where(self, service: Service) -> None:
        await create_account(service)
        ana, root = await log_in(service), await create_admin(service)
        headers = bearer(await service_token(service, await create_client(service, "users:write")))
        await post_log_in(service, password="a-wrong-password")
        await post_log_in(service, "ghost@example.com")
        await service.client.patch(f"/api/users/{ana.user_id}", json={"name": "Ana"}, headers=headers)
        await service.client.patch(f"/api/users/{ana.user_id}", json={"name": "Eve"}, headers=root.bearer)
        await service.client.patch(f"/api/users/{root.user_id}", json={"name": "Eve"}, headers=ana.bearer)

        page = (await service.client.get("/auth/events", headers=ana.bearer)).json()

        assert page["next_cursor"] is None
        assert {tuple(event) for event in page["items"]} == {
            ("id", "kind", "outcome", "reason", "changes", "origin", "created_at")
        }
        assert [(event["kind"], event["reason"], event["changes"], event["origin"]) for event in page["items"]] == [
            ("user_update", None, "name", None),
            ("user_update", None, "name", None),
            ("log_in", "INVALID_CREDENTIALS", None, HERE),
            ("log_in", None, None, HERE),
            ("activation", None, None, HERE),
            ("sign_up", None, None, HERE),
        ]

    async def test_come_in_pages_and_by_kind_outcome_and_time(self, service: Service) -> None:
        await create_account(service)
        ana = await log_in(service)

        async def kinds(**query: str) -> list[str]:
            response = await service.client.get("/auth/events", params=query, headers=ana.bearer)
            return [event["kind"] for event in response.json()["items"]]

        first = (await service.client.get("/auth/events", params={"limit": 2}, headers=ana.bearer)).json()
        later = (utc_now() + timedelta(hours=1)).isoformat()
        assert [event["kind"] for event in first["items"]] == ["log_in", "activation"]
        assert await kinds(cursor=first["next_cursor"]) == ["sign_up"]
        assert await kinds(kind="activation", outcome="success", until=later) == ["activation"]
        assert await kinds(since=later) == await kinds(outcome="failure") == []

    async def test_of_somebody_else_cannot_be_asked_for(self, service: Service) -> None:
        await create_account(service)
        other = await create_account(service, "eve@example.com")
        ana = await log_in(service)

        response = await service.client.get("/auth/events", params={"user_id": other}, headers=ana.bearer)

        assert refusal(response)[:2] == (422, "VALIDATION_ERROR")


async def get_events(service: Service, who: LoggedIn, **query: str | int) -> Response:
    return await service.client.get("/api/audit-events", params=query, headers=who.bearer)
