"""Mail travels by real SMTP, and only to the server that was meant."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiosmtplib
import pytest

from src.db import AsyncDatabaseManager
from src.email import EmailUtils, Message
from src.services.outbox import Dispatcher
from tests.support.certificates import make_certificate, tls_of
from tests.support.service import StartMailingService, make_settings
from tests.support.smtp_server import MailServer, link_in
from tests.support.steps import PASSWORD, activate, create_admin, sign_up, token_of

MESSAGE = Message(id=uuid4(), to="ana@example.com", subject="Olá", text="Olá: O'Brien\n.\n", html="<p>Olá</p>")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's authorities vouch for the certificate, as they would after an administrator has added it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


def email_utils(server: MailServer, **options: Any) -> EmailUtils:
    return EmailUtils(host="127.0.0.1", port=server.port, sender="Contas <accounts@example.com>", **options)


def assert_arrived(server: MailServer) -> None:
    [email] = server.emails
    assert email["Subject"] == "Olá"
    body = email.get_body(("plain",))
    assert body is not None
    assert body.get_content().splitlines() == MESSAGE.text.splitlines()


class TestEncryption:
    async def test_without_tls_for_development(self) -> None:
        with MailServer() as server:
            await email_utils(server, tls="none").send(MESSAGE)

        assert_arrived(server)

    async def test_starttls(self, trusted: Path) -> None:
        with MailServer(tls=tls_of(trusted)) as server:
            await email_utils(server, tls="starttls").send(MESSAGE)

        assert_arrived(server)

    async def test_tls_from_the_first_byte(self, trusted: Path) -> None:
        with MailServer(tls=tls_of(trusted), is_implicit=True) as server:
            await email_utils(server, tls="implicit").send(MESSAGE)

        assert_arrived(server)

    @pytest.mark.parametrize("tls", ["starttls", "implicit"])
    async def test_a_server_whose_certificate_nobody_vouches_for_gets_no_mail(
        self, certificate: Path, tls: str
    ) -> None:
        with (
            MailServer(tls=tls_of(certificate), is_implicit=tls == "implicit") as server,
            pytest.raises((OSError, aiosmtplib.SMTPException), match="CERTIFICATE_VERIFY_FAILED"),
        ):
            await email_utils(server, tls=tls).send(MESSAGE)

        assert server.emails == []

    async def test_a_server_that_shows_anothers_certificate_gets_no_mail(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        of_another = make_certificate(tmp_path, "192.0.2.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(of_another))
        with (
            MailServer(tls=tls_of(of_another)) as server,
            pytest.raises((OSError, aiosmtplib.SMTPException), match="CERTIFICATE_VERIFY_FAILED"),
        ):
            await email_utils(server, tls="starttls").send(MESSAGE)

        assert server.emails == []

    async def test_a_server_that_offers_no_starttls_gets_no_mail(self) -> None:
        with MailServer() as server, pytest.raises(aiosmtplib.SMTPException, match="STARTTLS"):
            await email_utils(server, tls="starttls").send(MESSAGE)

        assert server.emails == []

    def test_starttls_is_the_default(self) -> None:
        settings = make_settings(smtp_host="mail.example.com", smtp_from="accounts@example.com")

        carrier = EmailUtils.from_settings(settings)

        assert carrier is not None
        assert (carrier.tls, carrier.port, carrier.host) == ("starttls", 587, "mail.example.com")


class TestLogin:
    async def test_with_the_right_password(self, trusted: Path) -> None:
        with MailServer(tls=tls_of(trusted), login=("user", "sécret")) as server:
            await email_utils(server, username="user", password="sécret").send(MESSAGE)

        assert_arrived(server)

    async def test_a_wrong_password_raises(self, trusted: Path) -> None:
        with (
            MailServer(tls=tls_of(trusted), login=("user", "secret")) as server,
            pytest.raises(aiosmtplib.SMTPAuthenticationError),
        ):
            await email_utils(server, username="user", password="guess").send(MESSAGE)

        assert server.emails == []

    async def test_no_login_where_one_is_asked_for_raises(self, trusted: Path) -> None:
        with (
            MailServer(tls=tls_of(trusted), login=("user", "secret")) as server,
            pytest.raises(aiosmtplib.SMTPException),
        ):
            await email_utils(server).send(MESSAGE)

        assert server.emails == []

    def test_no_representation_shows_the_password(self) -> None:
        assert "secret" not in repr(EmailUtils(host="h", port=25, sender="a@example.com", password="secret"))


class TestRefusals:
    async def test_a_server_that_is_away_raises(self) -> None:
        with pytest.raises(aiosmtplib.SMTPConnectError):
            await email_utils(MailServer(), tls="none").send(MESSAGE)

    @pytest.mark.parametrize(("mood", "code"), [("not now", 451), ("never", 554)])
    async def test_a_refusal_raises_with_its_code(self, mood: Any, code: int) -> None:
        with MailServer() as server:
            server.becomes(mood)
            with pytest.raises(aiosmtplib.SMTPResponseException) as refusal:
                await email_utils(server, tls="none").send(MESSAGE)

        assert refusal.value.code == code

    async def test_a_server_that_drops_the_connection_after_the_data_raises(self) -> None:
        with MailServer() as server:
            server.becomes("drops")
            with pytest.raises(aiosmtplib.SMTPServerDisconnected):
                await email_utils(server, tls="none").send(MESSAGE)

    @pytest.mark.slow
    async def test_a_server_that_has_taken_the_mail_may_forget_to_say_goodbye(self) -> None:
        with MailServer() as server:
            server.becomes("takes and stays silent")
            await email_utils(server, tls="none").send(MESSAGE)

        assert_arrived(server)


async def test_what_arrives_is_read_by_a_mail_reader_and_its_link_works(
    start_mailing_service: StartMailingService, database: AsyncDatabaseManager
) -> None:
    service = await start_mailing_service()
    service.hold_emails()
    admin = await create_admin(service)
    body = {"email": "ana@example.com", "name": "Ağaoğlu O'Brien"}
    await service.client.post("/api/users", json=body, headers=admin.bearer)

    with MailServer() as server:
        await Dispatcher(database, email_utils(server, tls="none"), make_settings()).dispatch_due()

    [email] = server.emails
    assert (email["To"], email["Subject"]) == ("ana@example.com", "You are invited")
    plain = email.get_body(("plain",))
    assert plain is not None
    assert "  Name: Ağaoğlu O'Brien" in plain.get_content().splitlines()
    link = link_in(email)
    assert link.startswith("http://localhost:8000/invitation?token=")
    url = urlsplit(link)
    assert (await service.client.get(f"{url.path}?{url.query}")).status_code == 200
    accepted = await service.client.post(
        "/auth/invitation/accept", json={"token": token_of(link), "password": PASSWORD}
    )
    assert accepted.status_code == 200


async def test_an_address_in_any_script_gets_its_mail(
    start_mailing_service: StartMailingService, database: AsyncDatabaseManager
) -> None:
    service = await start_mailing_service()
    service.hold_emails()
    await sign_up(service, "josé@bücher.example")

    with MailServer() as server:
        await Dispatcher(database, email_utils(server, tls="none"), make_settings()).dispatch_due()

    [email] = server.emails
    assert server.recipients == ["josé@xn--bcher-kva.example"]
    assert (await activate(service, token_of(link_in(email)))).status_code == 200
