"""One spelling for each e-mail address, so that one mailbox cannot own two accounts by writing itself differently."""

import email_validator
from email_validator import EmailNotValidError, ValidatedEmail, validate_email

LOCAL_ADDRESS = "has a domain of tests or local networks, where production can send no email: use a real one"

_MAX_LENGTH = 254  # RFC 5321, section 4.5.3.1.3, without its angle brackets

# Domains of developers and of local networks (RFC 6761, RFC 6762). Addresses there are spelled like all others; whether
# they may be taken up is for the settings to say, see `is_local`.
_LOCAL = ("test", "local", "localhost")

for _name in _LOCAL:  # the documented way to admit one
    email_validator.SPECIAL_USE_DOMAIN_NAMES.remove(_name)


def normalize_email(address: str) -> str:
    """Lower-case, NFC, with the domain in its ASCII form (IDNA); applying it twice changes nothing.

    The network is not asked whether the domain exists. Raises `ValueError`, whose text does not repeat the address.
    """
    address = address.lower()
    try:
        parsed = _parse(address)
    except EmailNotValidError:
        raise ValueError(_reason(address)) from None
    return f"{parsed.local_part}@{parsed.ascii_domain or parsed.domain}"


def is_local(email: str) -> bool:
    """Whether no email gets there from the internet. The address is a normalized one."""
    return email.rpartition("@")[2].rpartition(".")[2] in _LOCAL


def _parse(address: str) -> ValidatedEmail:
    needs_dot = not address.endswith("@localhost")
    return validate_email(address, check_deliverability=False, globally_deliverable=needs_dot)


def _reason(address: str) -> str:
    """Why it is refused, in our words: those of the library quote the address."""
    local, at, domain = address.rpartition("@")
    if len(address) > _MAX_LENGTH:
        return f"is longer than the {_MAX_LENGTH} characters of an e-mail address"
    if not at:
        return "has no @, as in name@example.com"
    if not _is_local_part(local):
        return "is not valid before the @: write it as in name@example.com"
    if any(f".{domain}".endswith(f".{name}") for name in email_validator.SPECIAL_USE_DOMAIN_NAMES):
        return "has a reserved domain, where nobody gets email: use a real one"
    if domain and "." not in domain:
        return "has a domain without a dot: write it in full, such as name@example.com"
    return "is not valid after the @: write it as in name@example.com"


def _is_local_part(text: str) -> bool:
    try:
        _parse(f"{text}@example.com")
    except EmailNotValidError:
        return False
    return True
