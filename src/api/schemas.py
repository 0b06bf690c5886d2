"""The shape of what travels. Whatever is refused here is a 422 that names the field."""

import unicodedata
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from src.core.addresses import normalize_email
from src.core.passwords import PASSWORD_MAX_LENGTH

EXAMPLE_ID = "01936f2e-5b1c-7d3a-9f10-2b6a1c0d4e5f"
EXAMPLE_TOKEN = "kZ3v0c1Yw8Qm5rT7uX2bN6dF4hJ9sL0aE1gP3iR5oUc"  # noqa: S105 - shown in the documentation


def _printable(text: str) -> str:
    # PostgreSQL refuses NUL; escape sequences would act on an administrator's terminal.
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must not contain control characters")
    return text


Email = Annotated[
    str,
    Field(max_length=320, examples=["ana@example.com"], json_schema_extra={"format": "email"}),
    AfterValidator(normalize_email),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_printable),
    Field(examples=["Ana"]),
]
# Any text that UTF-8 can hold, spaces and control characters included: it is never shown, only hashed.
Password = Annotated[SecretStr, Field(max_length=PASSWORD_MAX_LENGTH, examples=["correct-horse-battery"])]
Token = Annotated[SecretStr, Field(min_length=1, max_length=512, examples=[EXAMPLE_TOKEN])]


class Body(BaseModel):
    """A request's body. A misspelt field is an error rather than silently lost."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SignUpRequest(Body):
    email: Email
    password: Password
    name: Name | None = None


class SignUpResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    activation_required: Annotated[bool, Field(description="Whether the link must be followed before a log-in works.")]
    activation_url: Annotated[
        str | None,
        Field(
            description="The link to follow; null when it was mailed, or when none is needed.",
            examples=[f"http://localhost:8000/activate?token={EXAMPLE_TOKEN}"],
        ),
    ]


class TokenRequest(Body):
    token: Token


class ActivationResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    is_active: Annotated[bool, Field(examples=[True])]


class EmailRequest(Body):
    email: Email


class Accepted(BaseModel):
    detail: str


class PublicProfile(BaseModel):
    """What anyone may see of a user."""

    model_config = ConfigDict(from_attributes=True)

    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    name: Annotated[str | None, Field(examples=["Ana"])]
    is_active: bool
    created_at: datetime


class Health(BaseModel):
    status: Annotated[str, Field(examples=["ok"])]


class Problem(BaseModel):
    """Every error, of every kind, looks like this."""

    detail: Annotated[str, Field(description="A sentence for a person: what is wrong, and what to do.")]
    code: Annotated[str, Field(description="A stable name for programs.")]
    details: Annotated[
        dict[str, Any], Field(description="More for programs; a 422 lists `fields` as `{field, reason}`.")
    ]
