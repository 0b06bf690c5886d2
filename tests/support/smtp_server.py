"""A real mail server on a loopback port, which can be told to misbehave."""

import asyncio
import socket
import ssl
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Literal, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

Mood = Literal[
    "well",
    "slow",
    "hangs",
    "drops",
    "takes and drops",
    "takes and hangs",
    "takes and stays silent",
    "not now",
    "never",
    "knows nobody",
    "has no such mailbox",
]


class _Handler:
    def __init__(self) -> None:
        self.mood: Mood = "well"
        self.emails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.unanswered: list[str] = []
        self.tried = 0

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.tried += 1
        if self.mood == "hangs":
            await asyncio.sleep(60)
        session.host_name = hostname
        return responses

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.mood == "knows nobody":
            return "550 5.7.1 who are you"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.mood == "has no such mailbox":
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        if self.mood == "not now":
            return "451 4.3.0 come back later"
        if self.mood == "never":
            return "554 5.7.1 not wanted here"
        if self.mood != "drops":
            assert isinstance(envelope.content, bytes)
            self.emails.append(message_from_bytes(envelope.content, policy=policy.default))
            self.recipients += envelope.rcpt_tos
        if self.mood in ("takes and drops", "takes and hangs"):
            self.unanswered += envelope.rcpt_tos
        if self.mood == "slow":
            await asyncio.sleep(1)
        if self.mood in ("drops", "takes and drops"):
            assert server.transport is not None
            server.transport.close()
        if self.mood == "takes and hangs":
            await asyncio.sleep(60)
        return "250 2.0.0 taken"

    async def handle_QUIT(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        if self.mood == "takes and stays silent":
            await asyncio.sleep(60)
        return "221 2.0.0 bye"


class MailServer:
    """Listens while it is entered, and may be entered again; `emails` is what it has taken."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        is_implicit: bool = False,
        login: tuple[str, str] | None = None,
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._options: dict[str, Any] = {"ssl_context": tls} if is_implicit else {"tls_context": tls}
        if tls and not is_implicit:
            self._options["require_starttls"] = True
        if login:
            self._options |= {"auth_required": True, "authenticator": _Authenticator(*login)}
            self._options["auth_require_tls"] = tls is not None and not is_implicit
        self._handler = _Handler()
        self._controller: Controller | None = None

    @property
    def emails(self) -> list[EmailMessage]:
        return self._handler.emails

    @property
    def recipients(self) -> list[str]:
        """To whom the emails went, whatever their headers say."""
        return self._handler.recipients

    @property
    def unanswered(self) -> list[str]:
        """Those of them of which the sender was never told that they were taken."""
        return self._handler.unanswered

    @property
    def tried(self) -> int:
        """How often somebody has said hello."""
        return self._handler.tried

    def becomes(self, mood: Mood) -> None:
        self._handler.mood = mood

    def __enter__(self) -> Self:
        self._controller = Controller(self._handler, hostname="127.0.0.1", port=self.port, **self._options)
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._controller is not None
        self._controller.stop()


class _Authenticator:
    def __init__(self, name: str, password: str) -> None:
        self._login = LoginPassword(name.encode(), password.encode())

    def __call__(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object
    ) -> AuthResult:
        return AuthResult(success=data == self._login, handled=False)


def link_in(email: EmailMessage) -> str:
    """The one link in the email, as a reader of its text would click it."""
    body = email.get_body(("plain",))
    assert body is not None
    [link] = [word for word in body.get_content().split() if word.startswith("http")]
    return str(link)
