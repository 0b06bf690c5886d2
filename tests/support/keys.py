"""Keys of any age, in folders of their own."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args
from uuid import UUID

from src.core.keys import Algorithm, KeyRing, rotate
from src.core.tokens import TokenSigner

ALGORITHMS = get_args(Algorithm)


def rotate_ago(folder: Path, ago: timedelta, algorithm: Algorithm = "ES256") -> tuple[str, str]:
    """Make keys that are already so old; the ids of the access key and the refresh secret."""
    made_at = f"{datetime.now(UTC) - ago:%Y%m%dT%H%M%SZ}"
    access, refresh, encryption = rotate(folder, algorithm)
    for key in (access, refresh, encryption):
        key.path.rename(folder / re.sub(r"\d{8}T\d{6}Z", made_at, key.path.name))
    return access.id, refresh.id


def make_ring(folder: Path, algorithm: Algorithm = "ES256", *, may_generate: bool = True) -> KeyRing:
    """One that reads its folder each time it is asked."""
    return KeyRing(folder, algorithm, may_generate=may_generate, reload_seconds=0)


def sign_access(signer: TokenSigner, user_id: UUID, session_id: UUID, *, audience: str | None = None) -> str:
    """An access token of somebody who has just logged in with a password."""
    now = datetime.now(UTC)
    return signer.sign_access(user_id, session_id, authenticated_at=now, second_factor_at=None, audience=audience)
