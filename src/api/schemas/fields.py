"""The values that many schemas have, and what they must look like."""

import base64
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

from src.core.fields import encodable
from src.core.users import EXAMPLE_ID

EXAMPLE_JWT = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiIuLi4ifQ.c2lnbmF0dXJl"
EXAMPLE_TOKEN = "kZ3v0c1Yw8Qm5rT7uX2bN6dF4hJ9sL0aE1gP3iR5oUc"


JsonWebToken = Annotated[
    SecretStr, AfterValidator(encodable), Field(min_length=1, max_length=4096, examples=[EXAMPLE_JWT])
]
Token = Annotated[SecretStr, AfterValidator(encodable), Field(min_length=1, max_length=512, examples=[EXAMPLE_TOKEN])]
# Of an authenticator app, or a recovery code: which it is, and what may stand between its letters, is not told here.
Code = Annotated[SecretStr, AfterValidator(encodable), Field(min_length=1, max_length=64, examples=["123456"])]
Limit = Annotated[int, Field(ge=1, le=100)]


_CURSOR_REASON = "is not a cursor: send back next_cursor of the page before, as it was"


def write_cursor(id_: UUID) -> str:
    """Where a page ended. Callers hand it back as it is; what it holds is ours to change."""
    return base64.urlsafe_b64encode(id_.bytes).rstrip(b"=").decode()


def _read_cursor(cursor: object) -> UUID:
    try:
        id_ = UUID(bytes=base64.b64decode(f"{cursor}==", altchars=b"-_", validate=True))
    except ValueError:
        raise ValueError(_CURSOR_REASON) from None
    if write_cursor(id_) != cursor:  # a cursor has one spelling
        raise ValueError(_CURSOR_REASON)
    return id_


Cursor = Annotated[
    UUID,
    BeforeValidator(_read_cursor),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 22,
            "maxLength": 22,
            "pattern": "^[A-Za-z0-9_-]{21}[AQgw]$",  # 16 bytes in base64url
            "description": "`next_cursor` of the page before.",
        }
    ),
]
NextCursor = Annotated[
    str | None,
    Field(
        description="The `cursor` of the next page; null on the last one.",
        examples=[write_cursor(UUID(EXAMPLE_ID))],
    ),
]


class Body(BaseModel):
    """A request's body. A misspelt field is an error rather than silently lost."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Query(BaseModel):
    """The query of a list. A misspelt filter is an error rather than silently without effect."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    limit: Limit = 50
    cursor: Cursor | None = None
