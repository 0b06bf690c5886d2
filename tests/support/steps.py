"""Steps that many tests take before the one that they are about: what people and other services ask over HTTP."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from httpx import Response

from src.core.callers import Scope
from src.services.clients import ClientSecret
from tests.support.service import MailingService, Service, accounts_of, clients_of

PASSWORD = "strong-pass-12-chars"
NEW_PASSWORD = "another-pass-12-chars"
UNKNOWN_ID = "00000000-0000-0000-0000-000000000000"


def token_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["token"][0]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refusal(response: Response) -> tuple[int, str, list[str]]:
    """The status, the code, and the fields that are named."""
    body = response.json()
    return response.status_code, body["code"], [field["field"] for field in body["details"].get("fields", [])]


# --- sign up and log in ---


@dataclass(frozen=True)
class LoggedIn:
    """What a log-in gave, and the header that goes with it."""

    access_token: str
    refresh_token: str
    user_id: str

    @property
    def bearer(self) -> dict[str, str]:
        return bearer(self.access_token)


async def post_sign_up(service: Service, email: str = "ana@example.com", **body: Any) -> Response:
    return await service.client.post("/auth/signup", json={"email": email, "password": PASSWORD} | body)


async def sign_up(service: Service, email: str = "ana@example.com", **body: Any) -> dict[str, Any]:
    response = await post_sign_up(service, email, **body)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def resend(service: Service, email: str = "ana@example.com") -> Response:
    return await service.client.post("/auth/activation/resend", json={"email": email})


async def activate(service: Service, token: str, **body: Any) -> Response:
    return await service.client.post("/auth/activate", json={"token": token} | body)


async def create_account(service: Service, email: str = "ana@example.com", **body: Any) -> str:
    """Sign up and follow the link; the id of the active user."""
    answer = await sign_up(service, email, **body)
    token = service.mailbox.token() if isinstance(service, MailingService) else token_of(answer["activation_url"])
    response = await activate(service, token)
    assert response.status_code == 200, response.text
    return str(answer["user_id"])


def read_tokens(response: Response) -> LoggedIn:
    assert response.status_code == 200, response.text
    body = response.json()
    return LoggedIn(body["access_token"], body["refresh_token"], body["user_id"])


async def post_log_in(
    service: Service, email: str = "ana@example.com", password: str = PASSWORD, **headers: str
) -> Response:
    return await service.client.post("/auth/login", json={"email": email, "password": password}, headers=headers)


async def log_in(service: Service, email: str = "ana@example.com", password: str = PASSWORD) -> LoggedIn:
    return read_tokens(await post_log_in(service, email, password))


async def create_admin(service: Service, email: str = "admin@example.com") -> LoggedIn:
    """An active administrator, made as the command line does it, and logged in."""
    async with accounts_of(service) as accounts:
        await accounts.create_admin(email=email, password=PASSWORD)
    return await log_in(service, email)


# --- what somebody does who is logged in ---


async def me(service: Service, who: LoggedIn) -> Response:
    return await service.client.get("/auth/me", headers=who.bearer)


async def refresh(service: Service, refresh_token: str) -> Response:
    return await service.client.post("/auth/refresh", json={"refresh_token": refresh_token})


async def log_out(service: Service, who: LoggedIn) -> Response:
    return await service.client.post("/auth/logout", headers=who.bearer)


async def change_password(
    service: Service, who: LoggedIn, current: str = PASSWORD, new: str = NEW_PASSWORD
) -> Response:
    body = {"current_password": current, "new_password": new}
    return await service.client.post("/auth/password-change", json=body, headers=who.bearer)


async def request_move(
    service: Service, who: LoggedIn, new_email: str = "new@example.com", current: str = PASSWORD
) -> Response:
    body = {"new_email": new_email, "current_password": current}
    return await service.client.post("/auth/email-change/request", json=body, headers=who.bearer)


async def confirm_move(service: Service, token: str) -> Response:
    return await service.client.post("/auth/email-change/confirm", json={"token": token})


async def revert_move(service: Service, token: str) -> Response:
    return await service.client.post("/auth/email-change/revert", json={"token": token})


async def move(service: MailingService, who: LoggedIn, new_email: str, current: str = PASSWORD) -> str:
    """Change the address; the token of the link that undoes it."""
    await request_move(service, who, new_email, current)
    response = await confirm_move(service, service.mailbox.token())
    assert response.status_code == 204, response.text
    return service.mailbox.token()


async def leave(service: Service, who: LoggedIn, current: str = PASSWORD) -> Response:
    return await service.client.post("/auth/delete-account", json={"current_password": current}, headers=who.bearer)


# --- what somebody does who has forgotten the password ---


async def request_reset(service: Service, email: str = "ana@example.com") -> Response:
    return await service.client.post("/auth/password-reset/request", json={"email": email})


async def reset(service: Service, token: str, new: str = NEW_PASSWORD) -> Response:
    return await service.client.post("/auth/password-reset/confirm", json={"token": token, "new_password": new})


# --- what administrators and other services do ---


async def patch_user(service: Service, who: LoggedIn, user_id: str, **changes: Any) -> Response:
    return await service.client.patch(f"/api/users/{user_id}", json=changes, headers=who.bearer)


async def delete_user(service: Service, who: LoggedIn, user_id: str) -> Response:
    return await service.client.delete(f"/api/users/{user_id}", headers=who.bearer)


async def create_client(service: Service, *scopes: str, name: str = "reports") -> ClientSecret:
    """Introduce another service: `await create_client(service, "users:read")`."""
    async with clients_of(service) as clients:
        return await clients.create(name=name, scopes=[Scope(scope) for scope in scopes])


async def post_client_credentials(service: Service, client: ClientSecret, **form: str) -> Response:
    credentials = {"client_id": str(client.client_id), "client_secret": client.client_secret}
    return await service.client.post("/auth/token", data={"grant_type": "client_credentials"} | credentials | form)


async def service_token(service: Service, client: ClientSecret) -> str:
    """An access token for all the scopes of another service."""
    response = await post_client_credentials(service, client)
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])
