"""What is reached over the network, and who is believed there: the SMTP server, and proxies."""

import asyncio
import os
import ssl
from collections.abc import Sequence
from socket import gaierror

import aiosmtplib

from src.cli.doctor.findings import Finding, Status
from src.core.settings import Settings
from src.email import EmailUtils

SMTP_SECONDS = 10


async def check_smtp(settings: Settings) -> Sequence[Finding]:
    email = EmailUtils.from_settings(settings)
    if email is None:
        status: Status = "problem" if settings.is_production else "warning"
        text = "SMTP is not configured, so activation links are in the answers, which production refuses."
        return [Finding("smtp", status, text, "Set SMTP_HOST and SMTP_FROM.")]
    server = f"{email.host}:{email.port}"
    try:
        async with asyncio.timeout(SMTP_SECONDS):
            await email.check()
    except (aiosmtplib.SMTPException, OSError) as error:
        text, advice = _explain(error)
        return [Finding("smtp", "problem", f"{server} {text}.", advice)]
    login = "after the log-in" if email.username else "without a log-in"
    return [Finding("smtp", "ok", f"{server} would take emails {login} (SMTP_TLS={email.tls}).")]


def _explain(error: BaseException) -> tuple[str, str]:
    """What failed, and what to check. The server's own words are left out: they may quote what it was sent."""
    match error:
        case aiosmtplib.SMTPAuthenticationError():
            return f"refuses the log-in ({error.code})", "Check SMTP_USERNAME and SMTP_PASSWORD."
        case aiosmtplib.SMTPSenderRefused(code=530):
            return "wants a log-in, or TLS (530)", "Set SMTP_USERNAME and SMTP_PASSWORD; check SMTP_TLS."
        case aiosmtplib.SMTPSenderRefused():
            return f"refuses the sender ({error.code})", "Check SMTP_FROM, and what the server lets the user send as."
        case aiosmtplib.SMTPResponseException():
            return f"answers with an error ({error.code})", "See the server's log."
        case gaierror():
            return "has a name that cannot be resolved", "Check SMTP_HOST, and this machine's DNS."
        case ssl.SSLError():
            why = getattr(error, "verify_message", None) or error.reason
            return f"offers no TLS that can be trusted ({why})", "Check SMTP_TLS, SMTP_PORT and the certificate."
        case TimeoutError():
            return f"did not answer within {SMTP_SECONDS} seconds", "Check SMTP_PORT, SMTP_TLS and the firewalls."
        case ConnectionRefusedError():
            return "refuses connections", "Check SMTP_HOST and SMTP_PORT, and that the server runs."
    if error.__cause__:
        return _explain(error.__cause__)
    return f"cannot be used ({error})", "Check SMTP_HOST, SMTP_PORT and SMTP_TLS."  # the words are this library's own


async def check_proxy(_settings: Settings) -> Sequence[Finding]:
    """What uvicorn reads from the environment; what its command line says instead is not seen from here."""
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
    if trusted != "*":
        return [Finding("proxy", "ok", f"X-Forwarded-For is believed from {trusted}.")]
    return [
        Finding(
            "proxy",
            "warning",
            "FORWARDED_ALLOW_IPS=* takes people to be where X-Forwarded-For begins, which anyone can forge.",
            "Set it to the proxy's address or network, such as 10.0.0.0/24: see docs/behind-a-proxy.md.",
        )
    ]
