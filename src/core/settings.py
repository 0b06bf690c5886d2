"""Every knob of the service, typed, with a default that works. `.env.example` lists them for people."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, HttpUrl, PlainValidator, TypeAdapter, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from src.core.limits import Rate
from src.core.logs import LogFormat, LogLevel, log_config

DAY = 24 * 60 * 60
LEAST_METRICS_TOKEN = 16
LEAST_BCRYPT_ROUNDS = 10  # OWASP's password storage cheat sheet
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processors this process may use: its CPU affinity, and the quota of its container (cgroup v2, v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = container_quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def container_quota(root: Path) -> float | None:
    """In processors; `None` where there is no limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroup here, or no limit ("max")
        return None


def default_hash_threads(cores: int, workers: str) -> int:
    """Cores ÷ worker processes. `workers` is the text of WEB_CONCURRENCY, from which uvicorn takes their number."""
    return max(1, cores // max(1, int(workers) if workers.isdigit() else 1))


def _public_url(url: str) -> str:
    TypeAdapter(HttpUrl).validate_python(url)
    return url.rstrip("/")


def _is_public(url: str) -> bool:
    """Whether people elsewhere can follow a link there, and nobody on the way can read it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" and host not in _LOOPBACK and not host.startswith("127.")


def _origin_of(url: str) -> str:
    """As browsers spell it: lower case, in punycode, without the default port of its scheme (RFC 6454, section 6)."""
    parsed = HttpUrl(url)
    is_default = parsed.port == {"http": 80, "https": 443}[parsed.scheme]
    return f"{parsed.scheme}://{parsed.host}" + ("" if is_default else f":{parsed.port}")


def _allowed_origins(value: str | tuple[str, ...]) -> tuple[str, ...]:
    entries = value.split(",") if isinstance(value, str) else value
    return tuple(_allowed_origin(entry.strip()) for entry in entries if entry.strip())


def _allowed_origin(entry: str) -> str:
    if entry == "*":
        return entry
    try:
        if re.fullmatch(r"https?://[^/?#@*\s]+", entry):
            return _origin_of(entry)
    except ValidationError:  # it would repeat the value
        pass
    raise ValueError("each must be scheme://host or scheme://host:port, without a path: https://app.example.com")


def _resources(value: str | tuple[str, ...]) -> tuple[str, ...]:
    entries = value.split(",") if isinstance(value, str) else value
    return tuple(_resource(entry.strip()) for entry in entries if entry.strip())


def _resource(entry: str) -> str:
    """An absolute URI without a fragment (RFC 8707, section 2)."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s#]+", entry):
        raise ValueError("each must be an absolute URI without a fragment: https://api.example.com")
    return entry


def _range_url(url: str) -> str:
    return _public_url(url) + "/"


def _database_url(url: str) -> str:
    if not url.startswith(("sqlite:", "sqlite+aiosqlite:", "postgres:", "postgresql:", "postgresql+asyncpg:")):
        raise ValueError("must be a URL of SQLite (sqlite:///file.db) or PostgreSQL (postgresql://user@host/name)")
    return url


def _link_template(template: str) -> str:
    if "{token}" not in template:
        raise ValueError("must hold {token}, the place of the one-time token in the link")
    return template


def _metrics_token(token: str) -> str:
    if token and len(token) < LEAST_METRICS_TOKEN:
        raise ValueError(f"must have {LEAST_METRICS_TOKEN} characters or more: make one with `openssl rand -hex 32`")
    return token


LinkTemplate = Annotated[str, AfterValidator(_link_template)]


def _rate(value: object) -> Rate:
    return value if isinstance(value, Rate) else Rate.parse(str(value))


RateSetting = Annotated[Rate, NoDecode, PlainValidator(_rate)]


class Settings(BaseSettings):
    """The configuration, read once from the environment and from `.env`; names are these fields' in capitals.

    Raises `ValidationError` for a value that cannot work and for a production that would be unsafe.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    app_env: Literal["development", "test", "production"] = "development"
    server_public_url: Annotated[str, AfterValidator(_public_url)] = "http://localhost:8000"
    server_max_requests: int = Field(default=500, gt=0)
    log_format: LogFormat | None = None  # None: text, but json in production
    log_level: LogLevel = "info"
    metrics_token: Annotated[str, AfterValidator(_metrics_token)] = Field(default="", repr=False)

    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        default="sqlite+aiosqlite:///data/users.db", repr=False
    )
    database_auto_migrate: bool = False
    database_pool_size: int = Field(default=20, gt=0)
    database_pool_timeout_seconds: float = Field(default=10, gt=0)
    database_lock_timeout_seconds: float = Field(default=10, gt=0)
    database_statement_timeout_seconds: float = Field(default=10, gt=0)

    auth_sign_up: Literal["open", "invitation"] = "open"
    auth_return_token_in_response: bool = False
    auth_auto_activate: bool = False
    auth_activation_ttl_seconds: int = Field(default=2 * DAY, gt=0)
    auth_password_reset_ttl_seconds: int = Field(default=60 * 60, gt=0)
    auth_email_change_ttl_seconds: int = Field(default=DAY, gt=0)
    auth_invitation_ttl_seconds: int = Field(default=7 * DAY, gt=0)
    auth_activation_url_template: LinkTemplate = "{SERVER_PUBLIC_URL}/activate?token={token}"
    auth_password_reset_url_template: LinkTemplate = "{SERVER_PUBLIC_URL}/password-reset?token={token}"
    auth_email_change_url_template: LinkTemplate = "{SERVER_PUBLIC_URL}/email-change?token={token}"
    auth_invitation_url_template: LinkTemplate = "{SERVER_PUBLIC_URL}/invitation?token={token}"

    auth_password_min_length: int = Field(default=12, ge=8, le=128)
    auth_hibp_enabled: bool = False
    auth_hibp_url: Annotated[str, AfterValidator(_range_url)] = "https://api.pwnedpasswords.com/range/"
    auth_bcrypt_rounds: int = Field(default=12, ge=4, le=20)
    auth_hash_threads: int = Field(
        default_factory=lambda: default_hash_threads(usable_cores(), os.environ.get("WEB_CONCURRENCY", "")), gt=0
    )
    auth_hash_queue_size: int = Field(default=128, gt=1)

    auth_access_ttl_seconds: int = Field(default=15 * 60, gt=0, le=DAY)
    auth_session_idle_seconds: int = Field(default=14 * DAY, gt=0)
    auth_session_absolute_seconds: int = Field(default=90 * DAY, gt=0)
    auth_refresh_grace_seconds: int = Field(default=10, ge=0, le=60)
    auth_max_sessions_per_user: int = Field(default=50, gt=0)
    auth_refresh_cookie: bool = False
    auth_notify_new_log_ins: bool = True
    auth_reauthentication_seconds: int = Field(default=15 * 60, gt=0)
    auth_admins_need_second_factor: bool = False

    cors_allowed_origins: Annotated[tuple[str, ...], NoDecode, PlainValidator(_allowed_origins)] = ()

    jwt_keys_dir: Path = Path("data/keys")
    jwt_algorithm: Literal["ES256", "EdDSA", "RS256"] = "ES256"
    jwt_issuer: str = ""
    jwt_audience: str = Field(default="user-auth-service", min_length=1)
    jwt_resources: Annotated[tuple[str, ...], NoDecode, PlainValidator(_resources)] = ()

    auth_default_locale: Literal["en", "pt-BR"] = "en"
    smtp_host: str = ""
    smtp_port: int = Field(default=587, gt=0, lt=65536)
    smtp_username: str = ""
    smtp_password: str = Field(default="", repr=False)
    smtp_from: str = ""
    smtp_tls: Literal["none", "starttls", "implicit"] = "starttls"
    email_templates_dir: Path | None = None
    outbox_in_app: bool = True
    outbox_lease_seconds: int = Field(default=60, gt=40)
    outbox_max_attempts: int = Field(default=25, gt=0)

    rate_limit_enabled: bool = True
    rate_limit_requests_per_origin: RateSetting = Rate.parse("300/1m")
    rate_limit_failures_per_account_and_origin: RateSetting = Rate.parse("10/15m")
    rate_limit_failures_per_account: RateSetting = Rate.parse("100/1h")
    rate_limit_codes_per_account: RateSetting = Rate.parse("10/1h")
    rate_limit_emails_per_address_and_origin: RateSetting = Rate.parse("10/1h")
    rate_limit_emails_per_address: RateSetting = Rate.parse("50/1h")

    users_public_profiles: bool = True
    api_docs: bool | None = None  # None: on but in production
    audit_retention_seconds: int = Field(default=365 * DAY, gt=0)

    @property
    def is_production(self) -> bool:
        return self.app_env == "production"

    @property
    def log_config(self) -> dict[str, Any]:
        """For `logging.config.dictConfig`."""
        return log_config(self.log_format or ("json" if self.is_production else "text"), self.log_level)

    @property
    def has_api_docs(self) -> bool:
        """Whether the interactive documentation is served: pages that load scripts from elsewhere."""
        return not self.is_production if self.api_docs is None else self.api_docs

    @property
    def is_https(self) -> bool:
        return self.public_origin.startswith("https://")

    @property
    def public_origin(self) -> str:
        return _origin_of(self.server_public_url)

    @property
    def issuer(self) -> str:
        """`iss` of our access tokens: where the service is, unless JWT_ISSUER says otherwise."""
        return self.jwt_issuer or self.server_public_url

    def link(self, template: str, token: str) -> str:
        """The link that a person follows; built from the settings, never from a request's Host header."""
        return template.replace("{SERVER_PUBLIC_URL}", self.server_public_url).replace("{token}", token)

    @model_validator(mode="after")
    def _complete_smtp(self) -> Self:
        if self.smtp_host and "@" not in self.smtp_from:
            raise ValueError("SMTP_HOST needs SMTP_FROM, the address that emails come from")
        return self

    @model_validator(mode="after")
    def _refuse_any_origin(self) -> Self:
        if "*" in self.cors_allowed_origins and self.auth_refresh_cookie:
            raise ValueError("AUTH_REFRESH_COOKIE needs CORS_ALLOWED_ORIGINS without *: any site could use the cookie")
        if "*" in self.cors_allowed_origins and self.is_production:
            raise ValueError("CORS_ALLOWED_ORIGINS=* lets any site read answers: name the origins in production")
        return self

    @model_validator(mode="after")
    def _tell_resources_from_us(self) -> Self:
        if self.jwt_audience in self.jwt_resources:
            raise ValueError("JWT_RESOURCES names others: it must not contain JWT_AUDIENCE")
        return self

    @model_validator(mode="after")
    def _refuse_unsafe_production(self) -> Self:
        if self.is_production and self.auth_return_token_in_response:
            raise ValueError("AUTH_RETURN_TOKEN_IN_RESPONSE hands links to whoever asks: unset it in production")
        if self.is_production and self.smtp_tls == "none" and self.smtp_host not in ("", *_LOOPBACK):
            raise ValueError("SMTP_TLS=none sends links in clear: use starttls or implicit in production")
        if self.is_production and self.auth_auto_activate:
            raise ValueError("AUTH_AUTO_ACTIVATE lets people claim addresses unproven: unset it in production")
        if self.is_production and not _is_public(self.server_public_url):
            raise ValueError("SERVER_PUBLIC_URL is no https:// address that people can reach: set it in production")
        for name, value in self:
            if self.is_production and name.endswith("_url_template") and value.lower().startswith("http://"):
                raise ValueError(f"{name.upper()} is http://, so links travel in clear: make it https:// in production")
        if self.is_production and self.auth_bcrypt_rounds < LEAST_BCRYPT_ROUNDS:
            least = f"use {LEAST_BCRYPT_ROUNDS} at least in production"
            raise ValueError(f"AUTH_BCRYPT_ROUNDS is so low that stolen hashes are cheap to guess: {least}")
        return self


@lru_cache
def get_settings() -> Settings:
    """The settings of this process. Ends it with one line for each wrong setting, and no value, if there is one."""
    try:
        return Settings()
    except ValidationError as error:
        lines = (f"  {'.'.join(map(str, e['loc'])).upper() or 'APP_ENV'}: {e['msg']}" for e in error.errors())
        raise SystemExit("The settings do not work; correct them (see .env.example):\n" + "\n".join(lines)) from None
