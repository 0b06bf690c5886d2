"""What the measurements must not exceed or fall below, and the exit status that follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Limit:
    """A claim about a figure that has been measured; both bounds are allowed values."""

    name: str
    measured: float
    at_least: float = -inf
    at_most: float = inf

    @property
    def holds(self) -> bool:
        return self.at_least <= self.measured <= self.at_most

    def __str__(self) -> str:
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        allowed = ", ".join(f"{words} {bound:g}" for words, bound in bounds if abs(bound) != inf)
        return f"{'ok' if self.holds else 'MISSED':8}{self.name}: {self.measured:.3g} ({allowed})"


def report(limits: Sequence[Limit]) -> int:
    """Print how each limit fared. The exit status is 1 if one is missed."""
    print(*limits, sep="\n")
    return int(not all(limit.holds for limit in limits))
