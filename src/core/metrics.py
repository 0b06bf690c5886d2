"""What is counted for whoever operates the service. Nothing is, unless METRICS_TOKEN is set: then `src.api.prometheus`
stands in for this."""


class Metrics:
    """Counts nothing."""

    def observe_request(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        """A request has ended. `route` is the template of its path; `status` is `None` where nobody got an answer."""

    def observe_hash_wait(self, kind: str, seconds: float) -> None:
        """A password's turn to be hashed has come."""

    def count_hash_refusal(self, kind: str) -> None:
        """There was no room to wait for a hash."""

    def count_limit(self, limit: str) -> None:
        """A rate limit has refused somebody."""

    def count_event(self, kind: str, failure: str | None, *, is_stored: bool) -> None:
        """Something that matters to security was done, or refused with the code `failure`. If it names nobody, the
        audit trail has no event of it."""
