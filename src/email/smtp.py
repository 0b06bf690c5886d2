"""Carrying a message by SMTP."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import TYPE_CHECKING, Literal, Self

from src.core.settings import Settings
from src.email.messages import Message

if TYPE_CHECKING:
    import aiosmtplib

GOODBYE_SECONDS = 1
TIMEOUT_SECONDS = 10  # for each step of the conversation; the dispatcher bounds the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailUtils:
    """Sends over SMTP. An application may wire in any object that has this `send`."""

    host: str
    port: int
    sender: str
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Literal["none", "starttls", "implicit"] = "starttls"

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """The server that SMTP_HOST names; `None` without one."""
        if not settings.smtp_host:
            return None
        return cls(
            host=settings.smtp_host,
            port=settings.smtp_port,
            sender=settings.smtp_from,
            username=settings.smtp_username,
            password=settings.smtp_password,
            tls=settings.smtp_tls,
        )

    async def send(self, message: Message) -> None:
        """Hand the message to the server. Raises `aiosmtplib.SMTPException` or `OSError` if it is not taken."""
        async with self._connected() as server:
            await server.send_message(self.compose(message))

    async def check(self) -> None:
        """Do all that comes before a message, the log-in and the name of the sender included, and send nothing.

        Raises as `send` does.
        """
        address = parseaddr(self.sender)[1]
        async with self._connected() as server:
            # A server that wants a log-in, or does not know the sender, says so no earlier.
            await server.mail(address, options=[] if address.isascii() else ["SMTPUTF8"], encoding="utf-8")

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator["aiosmtplib.SMTP", None]:
        import aiosmtplib  # needed only where emails are sent

        server = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            username=self.username or None,
            password=self.password or None,
            use_tls=self.tls == "implicit",
            start_tls=self.tls == "starttls",
            timeout=TIMEOUT_SECONDS,
        )
        try:
            await server.connect()
            yield server
            with suppress(aiosmtplib.SMTPException):  # what it took is taken: a bad goodbye must not send it again
                await server.quit(timeout=GOODBYE_SECONDS)
        finally:
            server.close()  # at once, also when a stop or the dispatcher's limit cancels what hangs

    def compose(self, message: Message) -> EmailMessage:
        """The email as it travels. A line break in a header raises `ValueError`, so nothing can add one."""
        if set(message.to + message.subject) & {"\r", "\n"}:  # the library lets one through at the very end
            raise ValueError("a header may not hold a linefeed or carriage return")
        email = EmailMessage(policy=SMTP)
        email["From"] = self.sender
        email["To"] = message.to
        email["Subject"] = message.subject
        email["Date"] = format_datetime(datetime.now(UTC))
        email["Message-ID"] = f"<{message.id}@{parseaddr(self.sender)[1].rpartition('@')[2]}>"
        email["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers to this, please
        email.set_content(message.text)
        email.add_alternative(message.html, subtype="html")
        return email
