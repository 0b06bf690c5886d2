"""One spelling for each e-mail address, so that one mailbox cannot own two accounts by writing itself differently."""

from email_validator import EmailNotValidError, validate_email


def normalize_email(address: str) -> str:
    """Lower-case, NFC, with the domain in its ASCII form (IDNA); applying it twice changes nothing.

    The network is not asked whether the domain exists. Raises `ValueError`, whose text does not repeat the address.
    """
    try:
        parsed = validate_email(address.lower(), check_deliverability=False)
    except EmailNotValidError:
        raise ValueError("is not an e-mail address, such as name@example.com") from None
    return f"{parsed.local_part}@{parsed.ascii_domain or parsed.domain}"
