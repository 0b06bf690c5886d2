"""Beginning an account, changing it, leaving."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from src.api.schemas.fields import EXAMPLE_TOKEN, Body, Code, Token
from src.core.fields import Email, Name, NewPassword, Password
from src.core.users import EXAMPLE_ID


class SignUpRequest(Body):
    email: Email
    password: NewPassword
    name: Name | None = None


class SignUpResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    activation_required: Annotated[
        bool, Field(description="Whether the link must be followed before a log-in works.", examples=[True])
    ]
    activation_url: Annotated[
        str | None,
        Field(
            description="The link to follow; null when it was mailed, or when none is needed.",
            examples=[f"http://localhost:8000/activate?token={EXAMPLE_TOKEN}"],
        ),
    ]


class TokenRequest(Body):
    token: Token


class ActivationRequest(Body):
    token: Token
    password: Annotated[
        NewPassword | None,
        Field(description="A new password. It is needed, and used, only while several sign-ups wait for the address."),
    ] = None


class ActivationResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    is_active: Annotated[bool, Field(examples=[True])]


class AcceptInvitationRequest(Body):
    token: Token
    password: NewPassword


class EmailRequest(Body):
    email: Email


class Accepted(BaseModel):
    detail: Annotated[str, Field(examples=["A link is on its way."])]


class PasswordResetAccepted(Accepted):
    reset_url: Annotated[
        str | None, Field(description="Null, unless links are in the answers by explicit setting.", examples=[None])
    ]


class EmailChangeAccepted(Accepted):
    email_change_url: Annotated[
        str | None, Field(description="Null, unless links are in the answers by explicit setting.", examples=[None])
    ]


class CurrentPassword(Body):
    """The proof of who asks."""

    current_password: Password
    code: Annotated[
        Code | None,
        Field(description="Of the second factor, where one is set and no code was proved lately.", examples=["123456"]),
    ] = None

    def read_code(self) -> str | None:
        return self.code.get_secret_value() if self.code else None


class PasswordChangeRequest(CurrentPassword):
    new_password: NewPassword


class PasswordResetRequest(Body):
    token: Token
    new_password: NewPassword


class EmailChangeRequest(CurrentPassword):
    new_email: Email


class DeleteAccountRequest(CurrentPassword): ...
