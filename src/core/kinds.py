"""Vocabularies that are stored, and that several layers name."""

from enum import StrEnum


class TokenPurpose(StrEnum):
    """What a one-time token may be used for; it is good for nothing else."""

    ACTIVATION = "activation"
    PASSWORD_RESET = "password_reset"
    EMAIL_CHANGE = "email_change"
    EMAIL_REVERT = "email_revert"
    INVITATION = "invitation"
    SECOND_FACTOR = "second_factor"  # between the password and the session; it travels in answers, not in emails


class EmailKind(StrEnum):
    """Which email it is: `src.email.catalogue` has a row for each, `src/email/templates/<locale>` a file."""

    ACTIVATION = "activation"
    ALREADY_REGISTERED = "already_registered"
    PASSWORD_RESET = "password_reset"
    EMAIL_CHANGE = "email_change"
    PASSWORD_CHANGED = "password_changed"
    EMAIL_CHANGED = "email_changed"
    REFRESH_REPLAYED = "refresh_replayed"
    ACCOUNT_DELETED = "account_deleted"
    ACCOUNT_REMOVED = "account_removed"
    INVITATION = "invitation"
    SECOND_FACTOR_SET = "second_factor_set"
    SECOND_FACTOR_REMOVED = "second_factor_removed"
    RECOVERY_CODES_RENEWED = "recovery_codes_renewed"
    RECOVERY_CODE_USED = "recovery_code_used"
    NEW_LOG_IN = "new_log_in"
