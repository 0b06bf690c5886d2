"""Clients that ask without a pause while something is broken, and what they saw."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bench.service import PASSWORD, Service, create_account

PAUSE_SECONDS = 0.05
TIMEOUT_SECONDS = 90  # more than any answer may take
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Answer:
    kind: str
    asked_at: float
    seconds: float
    status: int  # 0: none
    code: str


@dataclass(frozen=True, slots=True)
class Question:
    """`kind` names it in the report: "live", "read" or "write"."""

    kind: str
    method: str
    path: str
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Probes:
    """The answers so far. A phase is what lies between two calls of `begin`."""

    service: Service
    questions: Sequence[Question]
    answers: list[Answer] = field(default_factory=list)
    _phases: list[tuple[str, float]] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def begin(self, phase: str) -> None:
        self._phases.append((phase, time.monotonic()))

    def of(self, phase: str, kind: str) -> list[Answer]:
        """Those that were asked for in this phase."""
        names = [name for name, _ in self._phases]
        index = names.index(phase)
        begins = self._phases[index][1]
        ends = self._phases[index + 1][1] if index + 1 < len(names) else float("inf")
        return [answer for answer in self.answers if answer.kind == kind and begins <= answer.asked_at < ends]

    def statuses(self, phase: str, kind: str) -> Counter[int]:
        return Counter(answer.status for answer in self.of(phase, kind))

    def slowest(self, phase: str, kind: str) -> float:
        return max((answer.seconds for answer in self.of(phase, kind)), default=0.0)

    def report(self) -> None:
        for phase, _ in self._phases:
            for kind in dict.fromkeys(question.kind for question in self.questions):
                statuses = ", ".join(
                    f"{count} x {status or 'none'}" for status, count in self.statuses(phase, kind).items()
                )
                print(f"{phase:14} {kind:6} slowest {self.slowest(phase, kind):6.2f} s   {statuses}")

    def _ask(self, question: Question) -> None:
        while not self._is_over.is_set():
            asked_at = time.monotonic()
            status, code = self._answer_of(question)
            self.answers.append(Answer(question.kind, asked_at, time.monotonic() - asked_at, status, code))
            self._is_over.wait(PAUSE_SECONDS)

    def _answer_of(self, question: Question) -> tuple[int, str]:
        body = None if question.body is None else json.dumps(question.body)
        headers = {"Content-Type": "application/json", **question.headers}
        try:
            with closing(HTTPConnection("127.0.0.1", self.service.port, timeout=TIMEOUT_SECONDS)) as connection:
                connection.request(question.method, question.path, body, headers)
                response = connection.getresponse()
                text = response.read()
                return response.status, json.loads(text).get("code", "") if text else ""
        except (OSError, HTTPException, ValueError):
            return 0, ""


def questions_of(service: Service, *, at_once: int = AT_ONCE) -> Sequence[Question]:
    """Signs of life, and reads and writes of somebody who is logged in."""
    account = create_account(service)
    tokens = service.ask("POST", "/auth/login", {"email": account.email, "password": PASSWORD})
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    path = f"/api/users/{account.user_id}"
    return [
        Question("live", "GET", "/health/live"),
        *[Question("read", "GET", "/auth/me", headers=bearer)] * at_once,
        *[Question("write", "PATCH", path, {"name": "Somebody else"}, bearer)] * at_once,
    ]


@contextmanager
def probing(service: Service, questions: Sequence[Question] | None = None) -> Iterator[Probes]:
    """Ask until the end, and print what was seen."""
    probes = Probes(service, questions or questions_of(service))
    asking = [threading.Thread(target=probes._ask, args=(question,), daemon=True) for question in probes.questions]
    for thread in asking:
        thread.start()
    try:
        yield probes
    finally:
        probes._is_over.set()
        for thread in asking:
            thread.join(TIMEOUT_SECONDS)
        probes.report()


def descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))


def threads(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/task").iterdir()))
