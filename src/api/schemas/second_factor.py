"""Setting a second factor up, and proving who one is."""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from src.api.schemas.fields import Body, Code
from src.core.fields import Password
from src.core.users import UserRecord

_EXAMPLE_SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


class BeginSecondFactorRequest(Body):
    current_password: Password


class SecondFactorSetUp(BaseModel):
    """What an authenticator app needs. It is shown this once."""

    secret: Annotated[str, Field(description="To be typed into the app, in base32.", examples=[_EXAMPLE_SECRET])]
    otpauth_uri: Annotated[
        str,
        Field(
            description="To be opened by an app on the same device.",
            examples=[f"otpauth://totp/localhost:ana%40example.com?secret={_EXAMPLE_SECRET}&issuer=localhost"],
        ),
    ]
    qr_code: Annotated[
        str, Field(description="The URI as a QR code to be scanned: an SVG element.", examples=["<svg></svg>"])
    ]


class ConfirmSecondFactorRequest(Body):
    code: Annotated[Code, Field(description="What the authenticator app shows.")]


class RecoveryCodes(BaseModel):
    """Each stands once for a code of the authenticator app. They are shown this once."""

    recovery_codes: Annotated[list[str], Field(examples=[["f3zj-kdd4-gcrv-7sjw"]])]


class ReauthenticateRequest(Body):
    """One of the two."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "123456"}]})

    password: Password | None = None
    code: Annotated[Code | None, Field(description="Of the second factor.", examples=["123456"])] = None

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if (self.password is None) == (self.code is None):
            raise ValueError("must hold either password or code")
        return self


class SecondFactorState(BaseModel):
    is_set: Annotated[bool, Field(examples=[True])]
    recovery_codes_left: Annotated[int, Field(examples=[10])]


@dataclass(frozen=True, slots=True)
class Me(UserRecord):
    """The whole record of whoever asks."""

    second_factor: SecondFactorState
