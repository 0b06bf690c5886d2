"""The pages behind mailed links: plain forms that work without JavaScript.

Opening one changes nothing, however often: mail scanners follow links. Its button posts the token to the same path, by
a relative address, so that the service may live under a prefix. The token is all the authority and no cookie is read: a
form on another site can do no more than its author could alone. `Sec-Fetch-Site` is therefore not looked at: gateways
that open mailed links for people post from elsewhere.
"""

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import HTMLResponse

from src.api.dependencies import ContextDep
from src.core.exceptions import AppException, PasswordNeededError, ValidationException
from src.core.passwords import PASSWORD_MAX_LENGTH
from src.services import AccountService, Context, CredentialService

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent / "templates"
_STYLE = (_FOLDER / "style.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",  # the address of this page holds the token
}


@lru_cache
def _templates() -> "Environment":
    """Loaded with the first page: many services never show one."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True)
    templates.globals["style"] = _STYLE
    return templates


async def _mark_as_page(request: Request) -> None:
    request.state.is_page = True


router = APIRouter(include_in_schema=False, dependencies=[Depends(_mark_as_page)])

TokenInQuery = Annotated[str, Query(max_length=512)]
TokenInForm = Annotated[str, Form(max_length=512)]
NewPasswordInForm = Annotated[str, Form(max_length=PASSWORD_MAX_LENGTH)]
OptionalNewPasswordInForm = Annotated[str | None, Form(max_length=PASSWORD_MAX_LENGTH)]


@router.get("/activate")
async def show_activation(context: ContextDep, token: TokenInQuery = "") -> Response:
    return await _ask_confirmation(context, token)


@router.post("/activate")
async def confirm_activation(
    context: ContextDep, token: TokenInForm, new_password: OptionalNewPasswordInForm = None
) -> Response:
    try:
        await AccountService(context).activate(token, new_password=new_password, field="new_password")
    except (PasswordNeededError, ValidationException) as refusal:  # the link is still good
        return await _ask_confirmation(context, token, refusal=refusal)
    return _render("activated.html")


@router.get("/password-reset")
async def show_password_reset(context: ContextDep, token: TokenInQuery = "") -> Response:
    email = await CredentialService(context).preview_password_reset(token)
    return _ask_password("password_reset.html", context, token=token, email=email)


@router.post("/password-reset")
async def reset_password(context: ContextDep, token: TokenInForm, new_password: NewPasswordInForm = "") -> Response:
    email = await CredentialService(context).preview_password_reset(token)
    try:
        await CredentialService(context).reset_password(token=token, new_password=new_password)
    except ValidationException as refusal:  # the link is still good: let the person choose another password
        return _ask_password("password_reset.html", context, token=token, email=email, refusal=refusal)
    return _render("password_reset_done.html")


@router.get("/email-change")
async def show_email_change(context: ContextDep, token: TokenInQuery = "") -> Response:
    email = await CredentialService(context).preview_email_change(token)
    return _render("email_change.html", token=token, email=email)


@router.post("/email-change")
async def confirm_email_change(context: ContextDep, token: TokenInForm) -> Response:
    await CredentialService(context).confirm_email_change(token)
    return _render("email_changed.html")


@router.get("/email-revert")
async def show_email_revert(context: ContextDep, token: TokenInQuery = "") -> Response:
    email = await CredentialService(context).preview_email_revert(token)
    return _render("email_revert.html", token=token, email=email)


@router.post("/email-revert")
async def revert_email_change(context: ContextDep, token: TokenInForm) -> Response:
    await CredentialService(context).revert_email_change(token)
    return _render("email_reverted.html")


@router.get("/invitation")
async def show_invitation(context: ContextDep, token: TokenInQuery = "") -> Response:
    email = await AccountService(context).preview_invitation(token)
    return _ask_password("invitation.html", context, token=token, email=email)


@router.post("/invitation")
async def accept_invitation(context: ContextDep, token: TokenInForm, new_password: NewPasswordInForm = "") -> Response:
    email = await AccountService(context).preview_invitation(token)
    try:
        await AccountService(context).accept_invitation(token=token, password=new_password)
    except ValidationException as refusal:
        return _ask_password("invitation.html", context, token=token, email=email, refusal=refusal)
    return _render("invitation_accepted.html")


def is_page(request: Request) -> bool:
    return getattr(request.state, "is_page", False)


def render_refusal(request: Request, error: AppException) -> Response:
    """The error as a page, for somebody who followed a link: what is wrong, and what to do about this kind of link."""
    page = request.url.path.rpartition("/")[2]
    response = _render("refused.html", status_code=error.status_code, page=page, code=error.code, reason=error.detail)
    response.headers.update(error.response_headers())
    return response


async def _ask_confirmation(context: Context, token: str, *, refusal: AppException | None = None) -> Response:
    """What the link would activate, with the form for a new password while several sign-ups wait."""
    sign_up = await AccountService(context).preview_activation(token)
    return _ask_password("activate.html", context, token=token, email=sign_up.email, refusal=refusal, sign_up=sign_up)


def _ask_password(
    template: str,
    context: Context,
    *,
    token: str,
    email: str,
    refusal: AppException | None = None,
    **values: Any,
) -> Response:
    """The form for a new password, and why the one before was refused, if there was one."""
    reason = refusal.details["fields"][0]["reason"] if isinstance(refusal, ValidationException) else None
    values |= {"token": token, "email": email, "reason": reason}
    values["min_length"] = context.settings.auth_password_min_length
    return _render(template, status_code=refusal.status_code if refusal else 200, **values)


def _render(template: str, *, status_code: int = 200, **values: Any) -> Response:
    html = _templates().get_template(template).render(values, has_failed=status_code >= 400)
    return HTMLResponse(html, status_code=status_code, headers=_HEADERS)
