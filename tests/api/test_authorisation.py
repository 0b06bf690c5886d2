"""Who may do what: one table of every route, every verb and every kind of caller."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from fastapi.routing import iter_route_contexts
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import update

from src.api.app import app
from src.api.dependencies import runtime_of
from src.core.callers import Scope
from src.core.kinds import TokenPurpose
from src.core.passwords import hash_password
from src.core.second_factor import new_totp_secret
from src.core.tokens import hash_token, new_token
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel, UserTokenModel
from src.services.clients import ClientSecret
from tests.support.databases import add_rows, execute, read_all_but_events
from tests.support.factories import make_session
from tests.support.keys import sign_access
from tests.support.second_factor import code_of, make_second_factor
from tests.support.service import Service, Starter, clients_of
from tests.support.steps import NEW_PASSWORD, PASSWORD, bearer, create_client

RESOURCE = "https://shop.example.com"
# Demoted: an administrator until a moment ago, by the token from before. Service: by a token for exactly the scope that
# heads the section; unscoped: for all others (where none heads it: for all, and for none). Revoked: as the service, but
# its client was. Resource: the owner, by a token for another resource, which is everywhere as one that has ended. The
# user in a path is the owner, or another administrator where "(admin)" is written.
CALLERS = ("anonymous", "owner", "other", "admin", "disabled", "demoted", "service", "unscoped", "revoked", "resource")

ANYONE = """
GET /                                                  307
GET /docs                                              200
GET /docs/oauth2-redirect                              200
GET /redoc                                             200
GET /openapi.json                                      200
GET /health/live                                       200
GET /health/ready                                      200
GET /.well-known/jwks.json                             200
GET /.well-known/oauth-authorization-server            200
POST /auth/signup                                      201
POST /auth/activate                                    200
POST /auth/activation/resend                           202
POST /auth/invitation/accept                           200
POST /auth/login                                       200
POST /auth/login/second-factor                         200
POST /auth/token (password)                            200
POST /auth/token (refresh)                             200
POST /auth/token (client)                              200
POST /auth/revoke                                      200
POST /auth/refresh                                     200
POST /auth/password-reset/request                      202
POST /auth/password-reset/confirm                      204
POST /auth/email-change/confirm                        204
POST /auth/email-change/revert                         204
GET /activate                                          200
POST /activate                                         200
GET /invitation                                        200
POST /invitation                                       200
GET /password-reset                                    200
POST /password-reset                                   200
GET /email-change                                      200
POST /email-change                                     200
GET /email-revert                                      200
POST /email-revert                                     200
"""

SECTIONS: Mapping[Scope | None, str] = {
    None: """
                                                 anonymous owner  other  admin disabled demoted service unscoped revoked
GET /auth/me                                     401       200    200    200   ended    200     403     403      ended
GET /auth/events                                 401       200    200    200   ended    200     403     403      ended
GET /auth/sessions                               401       200    200    200   ended    200     403     403      ended
DELETE /auth/sessions                            401       204    204    204   ended    204     403     403      ended
DELETE /auth/sessions/{session_id}               401       204    204    204   ended    204     403     403      ended
POST /auth/logout                                401       204    204    204   ended    204     403     403      ended
POST /auth/logout (refresh_token)                204       204    204    204   ended    204     403     403      ended
POST /auth/reauthenticate                        401       204    204    204   ended    204     403     403      ended
POST /auth/second-factor                         401       200    200    200   ended    200     403     403      ended
POST /auth/second-factor/confirm                 401       200    200    200   ended    200     403     403      ended
POST /auth/second-factor/recovery-codes          401       200    200    200   ended    200     403     403      ended
DELETE /auth/second-factor                       401       204    204    204   ended    204     403     403      ended
POST /auth/password-change                       401       204    204    204   ended    204     403     403      ended
POST /auth/email-change/request                  401       202    202    202   ended    202     403     403      ended
POST /auth/delete-account                        401       204    204    204   ended    204     403     403      ended
""",
    Scope.USERS_READ: """
                                                 anonymous owner  other  admin disabled demoted service unscoped revoked
GET /api/users                                   401       403    403    200   ended    403     200     scope    ended
GET /api/users/{user_id}                         public    whole  public whole ended    public  whole   public   ended
GET /api/users/{user_id}/sessions                401       403    403    200   ended    403     200     scope    ended
""",
    Scope.USERS_WRITE: """
                                                 anonymous owner  other  admin disabled demoted service unscoped revoked
POST /api/users                                  401       403    403    201   ended    403     201     scope    ended
POST /api/users (is_admin)                       401       403    403    201   ended    403     fields  scope    ended
PATCH /api/users/{user_id} (name)                401       200    403    200   ended    403     200     scope    ended
PATCH /api/users/{user_id} (is_active)           401       fields 403    200   ended    403     200     scope    ended
PATCH /api/users/{user_id} (is_admin)            401       fields 403    200   ended    403     fields  scope    ended
PATCH /api/users/{user_id} (admin)               401       403    403    200   ended    403     403     scope    ended
DELETE /api/users/{user_id}                      401       403    403    204   ended    403     204     scope    ended
DELETE /api/users/{user_id} (admin)              401       403    403    204   ended    403     403     scope    ended
POST /api/users/{user_id}/password-reset         401       403    403    202   ended    403     202     scope    ended
POST /api/users/{user_id}/password-reset (admin) 401       403    403    202   ended    403     403     scope    ended
DELETE /api/users/{user_id}/second-factor        401       403    403    204   ended    403     403     scope    ended
DELETE /api/users/{user_id}/sessions             401       403    403    204   ended    403     204     scope    ended
DELETE /api/users/{user_id}/sessions (admin)     401       403    403    204   ended    403     403     scope    ended
""",
    Scope.AUDIT_READ: """
                                                 anonymous owner  other  admin disabled demoted service unscoped revoked
GET /api/audit-events                            401       403    403    200   ended    403     200     scope    ended
""",
    Scope.TOKENS_INTROSPECT: """
                                                 anonymous owner  other  admin disabled demoted service unscoped revoked
POST /auth/introspect                            client    403    403    200   ended    403     200     scope    ended
""",
}

# Other verdicts are statuses, and how much of a user is read.
REFUSALS = {
    (401, "UNAUTHORIZED"): "401",
    (401, "INVALID_ACCESS_TOKEN"): "ended",
    (401, "INVALID_CLIENT"): "client",
    (403, "FORBIDDEN"): "403",
    (403, "INSUFFICIENT_SCOPE"): "scope",
    (403, "FIELDS_FORBIDDEN"): "fields",
}

PUBLIC_PROFILE = {"id", "name", "is_active", "created_at"}
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@dataclass(frozen=True)
class Row:
    method: str
    path: str
    variant: str
    scope: Scope | None
    verdicts: Mapping[str, str]

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_for_anyone(self) -> bool:
        return len(set(self.verdicts.values())) == 1

    @property
    def name(self) -> str:
        return f"{self.route} {self.variant}".strip()


def read_row(line: str, scope: Scope | None = None) -> Row:
    method, path, *rest = line.split()
    variant = rest.pop(0) if rest[0].startswith("(") else ""
    verdicts = [*rest, "ended"] if len(rest) > 1 else rest * len(CALLERS)
    return Row(method, path, variant, scope, dict(zip(CALLERS, verdicts, strict=True)))


TABLE = [read_row(line) for line in ANYONE.strip().splitlines()] + [
    read_row(line, scope) for scope, rows in SECTIONS.items() for line in rows.strip().splitlines()[1:]
]


# --- who is there, and what they send ---


@dataclass(frozen=True)
class Person:
    id: UUID
    email: str
    session_id: UUID
    other_session_id: UUID
    bearer: Mapping[str, str]


class NoLinkLeftError(Exception):
    """For the purpose that it names."""


@dataclass
class Stage:
    """What all rows share; a row that may end what others need has a cast of its own."""

    service: Service
    database: AsyncDatabaseManager  # the test\'s own way into it
    client: ClientSecret
    revoked_client: ClientSecret
    links: dict[TokenPurpose, list[str]]  # each of somebody else; made when one is asked for and none is left
    refresh_tokens: list[str]  # of sessions of one bystander
    cast: Mapping[str, Person]

    def link(self, purpose: TokenPurpose) -> dict[str, str]:
        if not self.links.get(purpose):
            raise NoLinkLeftError(purpose)
        return {"token": self.links[purpose].pop()}

    def authorization(self, row: Row, caller: str) -> Mapping[str, str]:
        named = {row.scope} if row.scope else set(Scope)
        if caller == "anonymous":
            return {}
        if caller == "service":
            return self._service(self.client, named)
        if caller == "unscoped":
            return self._service(self.client, set(Scope) - named)
        if caller == "revoked":
            return self._service(self.revoked_client, named)
        if caller == "resource":
            owner = self.cast["owner"]
            return bearer(sign_access(self.service.signer, owner.id, owner.session_id, audience=RESOURCE))
        return self.cast[caller].bearer

    def _service(self, client: ClientSecret, scopes: set[Scope]) -> dict[str, str]:
        return bearer(self.service.signer.sign_service_access(client.client_id, scopes))


SHARED_SECRET = new_totp_secret()  # of everybody with a second factor

# Routes for which everybody has one, and whether it is confirmed.
SECOND_FACTORS = {
    "POST /auth/second-factor/confirm": False,
    "POST /auth/second-factor/recovery-codes": True,
    "DELETE /auth/second-factor": True,
    "DELETE /api/users/{user_id}/second-factor": True,
}

# What a request needs besides its token; a route that is not here needs nothing.
REQUESTS: Mapping[str, Callable[[Stage], dict[str, Any]]] = {
    "POST /auth/signup": lambda _: {"json": {"email": new_address(), "password": PASSWORD}},
    "POST /auth/activate": lambda s: {"json": s.link(TokenPurpose.ACTIVATION)},
    "POST /auth/activation/resend": lambda _: {"json": {"email": new_address()}},
    "POST /auth/invitation/accept": lambda s: {"json": s.link(TokenPurpose.INVITATION) | {"password": PASSWORD}},
    "POST /auth/login": lambda s: {"json": {"email": s.cast["owner"].email, "password": PASSWORD}},
    "POST /auth/login/second-factor": lambda s: {
        "json": {
            "second_factor_token": s.link(TokenPurpose.SECOND_FACTOR)["token"],
            "code": code_of(SHARED_SECRET),
        }
    },
    "POST /auth/token (password)": lambda s: {
        "data": {"grant_type": "password", "username": s.cast["owner"].email, "password": PASSWORD}
    },
    "POST /auth/token (refresh)": lambda s: {
        "data": {"grant_type": "refresh_token", "refresh_token": s.refresh_tokens.pop()}
    },
    "POST /auth/revoke": lambda s: {"data": {"token": s.refresh_tokens.pop()}},
    "POST /auth/introspect": lambda _: {"data": {"token": "x"}},
    "POST /auth/token (client)": lambda s: {
        "data": {
            "grant_type": "client_credentials",
            "client_id": str(s.client.client_id),
            "client_secret": s.client.client_secret,
        }
    },
    "POST /auth/refresh": lambda s: {"json": {"refresh_token": s.refresh_tokens.pop()}},
    "POST /auth/password-reset/request": lambda s: {"json": {"email": s.cast["owner"].email}},
    "POST /auth/password-reset/confirm": lambda s: {
        "json": s.link(TokenPurpose.PASSWORD_RESET) | {"new_password": NEW_PASSWORD}
    },
    "POST /auth/email-change/confirm": lambda s: {"json": s.link(TokenPurpose.EMAIL_CHANGE)},
    "POST /auth/email-change/revert": lambda s: {"json": s.link(TokenPurpose.EMAIL_REVERT)},
    "GET /activate": lambda s: {"params": s.link(TokenPurpose.ACTIVATION)},
    "POST /activate": lambda s: {"data": s.link(TokenPurpose.ACTIVATION)},
    "GET /invitation": lambda s: {"params": s.link(TokenPurpose.INVITATION)},
    "POST /invitation": lambda s: {"data": s.link(TokenPurpose.INVITATION) | {"new_password": NEW_PASSWORD}},
    "GET /password-reset": lambda s: {"params": s.link(TokenPurpose.PASSWORD_RESET)},
    "POST /password-reset": lambda s: {"data": s.link(TokenPurpose.PASSWORD_RESET) | {"new_password": NEW_PASSWORD}},
    "GET /email-change": lambda s: {"params": s.link(TokenPurpose.EMAIL_CHANGE)},
    "POST /email-change": lambda s: {"data": s.link(TokenPurpose.EMAIL_CHANGE)},
    "GET /email-revert": lambda s: {"params": s.link(TokenPurpose.EMAIL_REVERT)},
    "POST /email-revert": lambda s: {"data": s.link(TokenPurpose.EMAIL_REVERT)},
    "POST /auth/logout (refresh_token)": lambda s: {"json": {"refresh_token": s.refresh_tokens.pop()}},
    "POST /auth/reauthenticate": lambda _: {"json": {"password": PASSWORD}},
    "POST /auth/second-factor": lambda _: {"json": {"current_password": PASSWORD}},
    "POST /auth/second-factor/confirm": lambda _: {"json": {"code": code_of(SHARED_SECRET)}},
    "POST /auth/password-change": lambda _: {"json": {"current_password": PASSWORD, "new_password": NEW_PASSWORD}},
    "POST /auth/email-change/request": lambda _: {"json": {"new_email": new_address(), "current_password": PASSWORD}},
    "POST /auth/delete-account": lambda _: {"json": {"current_password": PASSWORD}},
    "POST /api/users": lambda _: {"json": {"email": new_address()}},
    "POST /api/users (is_admin)": lambda _: {"json": {"email": new_address(), "is_admin": True}},
    "PATCH /api/users/{user_id} (name)": lambda _: {"json": {"name": "Ana"}},
    "PATCH /api/users/{user_id} (is_active)": lambda _: {"json": {"is_active": False}},
    "PATCH /api/users/{user_id} (is_admin)": lambda _: {"json": {"is_admin": True}},
    "PATCH /api/users/{user_id} (admin)": lambda _: {"json": {"name": "Ana"}},
}

_numbers = count()
_hashed_password = hash_password(PASSWORD, rounds=4)


def new_address() -> str:
    return f"somebody-{next(_numbers)}@example.com"


def new_user(**values: Any) -> UserModel:
    return UserModel(email=new_address(), hashed_password=_hashed_password, **values)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_stage(shared_starter: Starter) -> Stage:
    service = await shared_starter.start_mailing()
    service.hold_emails()
    client, revoked_client = await create_client(service, *Scope), await create_client(service, *Scope, name="revoked")
    async with clients_of(service) as clients:
        await clients.revoke("revoked")
    database = (await shared_starter.start()).database
    return Stage(
        service,
        database,
        client,
        revoked_client,
        links={},
        refresh_tokens=await make_refresh_tokens(service),
        cast=await assemble(service),
    )


async def make_links(service: Service, purpose: TokenPurpose) -> list[str]:
    tokens = [new_token() for _ in CALLERS]
    is_pending = purpose in (TokenPurpose.ACTIVATION, TokenPurpose.INVITATION)
    state = {"is_active": False, "activated_at": None} if is_pending else {}
    async with service.database.session() as session:
        users = [new_user(**state) for _ in tokens]
        session.add_all(users)
        await session.flush()
        if purpose is TokenPurpose.SECOND_FACTOR:
            session.add_all(
                make_second_factor(runtime_of(service.app).encryption, user.id, SHARED_SECRET) for user in users
            )
        session.add_all(
            UserTokenModel(
                user_id=user.id,
                purpose=purpose,
                token_hash=hash_token(token),
                expires_at=utc_now() + timedelta(hours=1),
                new_email=new_address(),
            )
            for user, token in zip(users, tokens, strict=True)
        )
        await session.commit()
    return tokens


async def make_refresh_tokens(service: Service) -> list[str]:
    """One for each caller and each route that takes them."""
    async with service.database.session() as session:
        bystander = new_user()
        session.add(bystander)
        await session.flush()
        sessions = [make_session(bystander) for _ in range(4 * len(CALLERS))]
        session.add_all(sessions)
        await session.commit()
    return [service.signer.sign_refresh(each.id, generation=1) for each in sessions]


async def assemble(service: Service) -> dict[str, Person]:
    """The people of the table, logged in; then one is disabled and one is demoted, by another administrator."""
    users = {role: new_user() for role in ("owner", "other", "disabled")}
    users |= {role: new_user(is_admin=True) for role in ("admin", "another admin", "demoted")}
    async with service.database.session() as session:
        session.add_all(users.values())
        await session.flush()
        sessions = {role: (make_session(user), make_session(user)) for role, user in users.items()}
        session.add_all(each for pair in sessions.values() for each in pair)
        await session.commit()
    cast = {}
    for role, user in users.items():
        current, other = sessions[role]
        token = sign_access(service.signer, user.id, current.id)
        cast[role] = Person(user.id, user.email, current.id, other.id, bearer(token))
    for role, change in {"disabled": {"is_active": False}, "demoted": {"is_admin": False}}.items():
        response = await patch(service, cast["another admin"], cast[role], **change)
        assert response.status_code == 200, response.text
    return cast


async def add_second_factors(stage: Stage, *, is_confirmed: bool) -> None:
    """One for each of the cast, who have just proved a code of it."""
    encryption = runtime_of(stage.service.app).encryption
    factors = [make_second_factor(encryption, person.id, SHARED_SECRET) for person in stage.cast.values()]
    for factor in factors:
        factor.confirmed_at = utc_now() if is_confirmed else None
    await add_rows(stage.service.database, *factors)
    await execute(stage.service.database, update(SessionModel).values(second_factor_at=utc_now()))


async def patch(service: Service, by: Person, whom: Person, **changes: Any) -> Response:
    return await service.client.patch(f"/api/users/{whom.id}", json=changes, headers=by.bearer)


# --- the table against the application ---


async def ask(stage: Stage, row: Row, caller: str) -> str:
    """What the application decides, in the words of the table."""
    somebody = "other" if caller == "service" else "owner"  # whom the administrator has deleted, it could not
    target = stage.cast["another admin" if row.variant == "(admin)" else somebody]
    session_id = stage.cast[caller].other_session_id if caller in stage.cast else uuid4()
    url = row.path.format(user_id=target.id, session_id=session_id)
    request = await fill(stage, row) | {"headers": stage.authorization(row, caller)}
    response = await stage.service.client.request(row.method, url, **request)
    if row.method == "GET" and (caller == "anonymous" or not row.is_for_anyone):
        head = await stage.service.client.head(url, **request)
        assert head.status_code == response.status_code, row.name
    return read_verdict(row, response)


async def fill(stage: Stage, row: Row) -> dict[str, Any]:
    make = REQUESTS.get(row.name)
    if make is None:
        return {}
    try:
        return make(stage)
    except NoLinkLeftError as missing:
        [purpose] = missing.args
        stage.links[purpose] = await make_links(stage.service, purpose)
        return make(stage)


def read_verdict(row: Row, response: Response) -> str:
    if response.is_error:
        code = response.json().get("code") if "json" in response.headers["content-type"] else response.text
        return REFUSALS.get((response.status_code, code), f"{response.status_code} {code}")
    if row.route == "GET /api/users/{user_id}":
        return "public" if response.json().keys() == PUBLIC_PROFILE else "whole"
    return str(response.status_code)


def is_refusal(verdict: str) -> bool:
    return verdict in REFUSALS.values()


async def differences(stage: Stage, row: Row, is_wanted: Callable[[str], bool]) -> dict[str, str]:
    """The cells of a row in which the application decides otherwise, of those with a verdict that is wanted."""
    answers = {caller: await ask(stage, row, caller) for caller, verdict in row.verdicts.items() if is_wanted(verdict)}
    return {f"{row.name} by {caller}": answer for caller, answer in answers.items() if answer != row.verdicts[caller]}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_the_application_decides_as_the_table_does_and_a_refusal_changes_nothing(
    shared_stage: Stage, row: Row
) -> None:
    stage, database = shared_stage, shared_stage.database
    if row.method != "GET" and not row.is_for_anyone:
        stage = replace(stage, cast=await assemble(stage.service))
    if row.route in SECOND_FACTORS:
        await add_second_factors(stage, is_confirmed=SECOND_FACTORS[row.route])
    before = await read_all_but_events(database)

    wrongly_granted = await differences(stage, row, is_refusal)
    after_refusals = await read_all_but_events(database)
    wrongly_refused = await differences(stage, row, lambda verdict: not is_refusal(verdict))

    assert wrongly_granted == {}
    assert after_refusals == before
    assert wrongly_refused == {}


def routes() -> set[str]:
    """Every route of the application, whoever includes it. HEAD goes wherever GET does."""
    return {
        f"{method} {route.path}"
        for route in iter_route_contexts(app.routes)
        for method in (route.methods or {"ANY"}) - {"HEAD"}
    }


def test_every_route_is_in_the_table_and_nothing_else_is() -> None:
    assert {row.route for row in TABLE} == routes()


def test_openapi_names_the_scopes_of_the_table() -> None:
    documented = {
        f"{method.upper()} {path}": set(scopes)
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
        for security in operation.get("security", [])
        for scopes in security.values()
        if scopes
    }

    assert documented == {row.route: {row.scope} for row in TABLE if row.verdicts["unscoped"] == "scope"}


async def test_a_verb_that_a_path_does_not_take_is_a_405() -> None:
    taken = {(path, method) for method, path in (route.split() for route in routes())}
    taken |= {(path, "HEAD") for path, method in taken if method == "GET"}
    others = {(path, verb) for path, _ in taken for verb in VERBS} - taken

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        statuses = {
            f"{verb} {path}": (await client.request(verb, path.format(user_id=uuid4(), session_id=uuid4()))).status_code
            for path, verb in others
        }

    assert statuses == dict.fromkeys(statuses, 405)
