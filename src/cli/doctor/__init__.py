"""`python -m src doctor`: checks all that the service needs, changes none of it, and says what to do.

A check never raises. What it finds is a value, with no secret in it; what it could not check is a finding as well.
"""

from collections.abc import Iterator, Sequence

from src.cli.doctor.clock import check_clock_by_database, check_clock_by_keys, check_clock_by_users
from src.cli.doctor.database import check_database, check_outbox, check_schema
from src.cli.doctor.findings import Check, Finding
from src.cli.doctor.keys import check_keys, check_secrets
from src.cli.doctor.machine import check_connections, check_descriptors, check_disk
from src.cli.doctor.network import check_proxy, check_smtp
from src.core.settings import Settings, get_settings


async def examine() -> Sequence[Finding]:
    """Every check in turn."""
    settings = read_settings()
    if not isinstance(settings, Settings):
        return [*settings, *dict.fromkeys(_skip(check, "the settings do not work") for check in CHECKS[1:])]
    findings: list[Finding] = []
    for check in CHECKS:
        reasons = [finding.blocks for finding in findings if finding.check in check.needs and finding.blocks]
        findings += [_skip(check, reasons[0])] if reasons else await _run(check, settings)
    return list(dict.fromkeys(findings))


def _skip(check: Check, reason: str) -> Finding:
    return Finding(check.name, "skipped", f"Not checked: {reason}.", blocks=reason)


async def _run(check: Check, settings: Settings) -> Sequence[Finding]:
    try:
        return await check.run(settings)
    except Exception as error:  # noqa: BLE001 - nobody foresaw it; its text may hold anything, a password too
        text = f"The check failed ({type(error).__qualname__})."
        return [Finding(check.name, "problem", text, blocks=f"see {check.name}")]


def read_settings() -> Settings | Sequence[Finding]:
    """The settings, or what is wrong with them."""
    try:
        return get_settings()
    except SystemExit as refusal:
        lines = str(refusal.code).splitlines()[1:]
    except (OSError, ValueError) as error:
        lines = [f".env cannot be read ({type(error).__qualname__})"]
    return [Finding("settings", "problem", f"{line.strip()}.", "See .env.example.") for line in lines]


async def check_settings(settings: Settings) -> Sequence[Finding]:
    works = Finding("settings", "ok", f"They work, for APP_ENV={settings.app_env}.")
    return [works, *(Finding("settings", "warning", text, advice) for text, advice in _find_doubts(settings))]


def _find_doubts(settings: Settings) -> Iterator[tuple[str, str]]:
    refused = "Production refuses to start with it: unset it there."
    if settings.auth_return_token_in_response:
        yield "AUTH_RETURN_TOKEN_IN_RESPONSE hands links to whoever asks.", refused
    if settings.auth_auto_activate:
        yield "AUTH_AUTO_ACTIVATE lets people claim addresses unproven.", refused


CHECKS = (
    Check("settings", check_settings),
    Check("database", check_database),
    Check("limits", check_descriptors),
    Check("limits", check_connections, needs=("database",)),
    Check("disk", check_disk),
    Check("schema", check_schema, needs=("database",)),
    Check("outbox", check_outbox, needs=("schema",)),
    Check("keys", check_keys),
    Check("secrets", check_secrets, needs=("schema", "keys")),
    Check("smtp", check_smtp),
    Check("clock", check_clock_by_keys, needs=("keys",)),
    Check("clock", check_clock_by_database, needs=("database",)),
    Check("clock", check_clock_by_users, needs=("schema",)),
    Check("proxy", check_proxy),
)
