"""Codes of the second factor: those of an authenticator app (TOTP, RFC 6238), and recovery codes for who has lost it.

What they look like is known only here. The libraries are loaded when somebody uses a second factor.
"""

import hashlib
import hmac
import io
import re
import secrets
import time
from base64 import b32decode, b32encode
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from pyotp import TOTP

RECOVERY_CODES = 10

_STEP_SECONDS = 30
_DRIFT = 1  # steps, either way: clocks differ, and people type slowly (RFC 6238, section 5.2)
_LEAST_TOTP_SECRET_BYTES = 10
_RECOVERY_CODE_BYTES = 10  # 80 bits: nobody finds one by trying hashes
_TOTP_CODE = re.compile(r"[0-9]{6}")


def new_totp_secret() -> str:
    """160 random bits, in base32 (RFC 4226, section 4, R6)."""
    return b32encode(secrets.token_bytes(20)).decode()


def normalize_totp_secret(text: str) -> str:
    """A secret of another system, as this one writes its own: capitals without spaces and padding.

    Raises `ValueError`. RFC 4226 (section 4, R6) asks for 128 bits, but many systems have shared secrets of 80, which
    people's apps hold: to refuse those would take the second factor from them.
    """
    secret = text.replace(" ", "").rstrip("=")
    try:
        decoded = b32decode(secret + "=" * (-len(secret) % 8), casefold=True)
    except ValueError:
        raise ValueError("is not base32") from None
    if len(decoded) < _LEAST_TOTP_SECRET_BYTES:
        raise ValueError(f"must have at least {8 * _LEAST_TOTP_SECRET_BYTES} bits")
    return secret.upper()


def is_totp_code(code: str) -> bool:
    """Whether it looks like one of an authenticator app: anything else may be a recovery code."""
    return _TOTP_CODE.fullmatch(code.replace(" ", "")) is not None


def find_step(secret: str, code: str, *, at: float | None = None) -> int | None:
    """The time step whose code this is, of the one at this time (in seconds since 1970; by default now) and one either
    way; `None` for a wrong code."""
    code = code.replace(" ", "")
    if not _TOTP_CODE.fullmatch(code):
        return None
    totp, now = _totp_class()(secret), int(time.time() if at is None else at) // _STEP_SECONDS
    for step in range(now - _DRIFT, now + _DRIFT + 1):
        if hmac.compare_digest(totp.generate_otp(step), code):
            return step
    return None


@cache
def _totp_class() -> type["TOTP"]:
    from pyotp import TOTP

    class ShorterTOTP(TOTP):
        """By itself the library refuses secrets below 112 bits, which other systems have given out."""

        min_secret_length_bits = 8 * _LEAST_TOTP_SECRET_BYTES

    return ShorterTOTP


def otpauth_uri(secret: str, *, account: str, issuer: str) -> str:
    """What authenticator apps read: who shares the secret with whom, and the secret."""
    from pyotp import TOTP

    return TOTP(secret).provisioning_uri(name=account, issuer_name=issuer)


def draw_qr_code(text: str) -> str:
    """The text as a QR code: an SVG element."""
    import segno

    svg = io.BytesIO()
    # White behind it: scanners do not find black on a dark page.
    segno.make(text, error="m", micro=False).save(
        svg, kind="svg", scale=4, light="#fff", xmldecl=False, nl=False, svgclass=None, lineclass=None
    )
    return svg.getvalue().decode()


def new_recovery_codes() -> Sequence[str]:
    return [_new_recovery_code() for _ in range(RECOVERY_CODES)]


def hash_recovery_code(code: str, user_id: UUID) -> str:
    """What is stored of a code, however it is typed; that of two users with the same code differs."""
    letters = "".join(filter(str.isalnum, code)).upper()
    return hashlib.sha256(user_id.bytes + letters.encode()).hexdigest()


def _new_recovery_code() -> str:
    letters = b32encode(secrets.token_bytes(_RECOVERY_CODE_BYTES)).decode().lower()
    return "-".join(letters[start : start + 4] for start in range(0, len(letters), 4))
