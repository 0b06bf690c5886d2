"""The refresh cookie as a real browser keeps it: for front ends that are listed, and for no other.

All are on one site, which ports do not divide, so SameSite alone would let each of them use it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from selenium.webdriver import Chrome

from tests.support.browser import Browser
from tests.support.processes import run_service, wait_until
from tests.support.steps import PASSWORD, token_of

pytestmark = pytest.mark.slow

EMAIL = "ana@example.com"

FETCH = """
const [url, body, done] = arguments;
fetch(url, {method: "POST", credentials: "include", headers: {"Content-Type": "application/json"}, body})
  .then(answer => done(answer.status), () => done(null));
"""
SUBMIT = """
const form = Object.assign(document.createElement("form"), {method: "POST", action: arguments[0]});
document.body.append(form);
form.submit();
"""


class EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site() -> Iterator[str]:
    """The origin of an empty page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class FrontEnds:
    """Pages of three origins: the service's own, one that is listed, and one that is not."""

    chromium: Chrome
    own: str
    listed: str
    foreign: str

    def post(self, path: str, *, at: str, **body: object) -> int | None:
        """The status of what a script of this origin asks for; `None` where it may not read the answer."""
        self.chromium.get(f"{at}/health/live")
        status: int | None = self.chromium.execute_async_script(
            FETCH, self.own + path, json.dumps(body) if body else None
        )
        return status

    def submit_form(self, path: str, *, at: str) -> None:
        """What a script need not read: a browser goes where the form does."""
        self.chromium.get(at)
        self.chromium.execute_script(SUBMIT, self.own + path)
        wait_until(lambda: self.chromium.current_url == self.own + path)

    def log_in(self, *, at: str) -> int | None:
        return self.post("/auth/login", at=at, email=EMAIL, password=PASSWORD, use_cookie=True)


@pytest.fixture
def front_ends(chromium: Chrome, tmp_path: Path) -> Iterator[FrontEnds]:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    with site() as listed, site() as foreign:
        environment = {"AUTH_REFRESH_COOKIE": "true", "CORS_ALLOWED_ORIGINS": listed, "AUTH_BCRYPT_ROUNDS": "4"}
        with run_service(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/users.db", **environment) as service:
            service.wait_until_ready()
            body = {"email": EMAIL, "password": PASSWORD}
            link = httpx.post(f"{service.url}/auth/signup", json=body).json()["activation_url"]
            httpx.post(f"{service.url}/auth/activate", json={"token": token_of(link)})
            yield FrontEnds(chromium, service.url, listed, foreign)
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    Browser(chromium, tmp_path).take_complaints()  # of requests that were refused here as they should be


@pytest.mark.parametrize("place", ["own", "listed"])
def test_a_front_end_of_ours_logs_in_refreshes_and_logs_out(front_ends: FrontEnds, place: str) -> None:
    at = getattr(front_ends, place)

    assert front_ends.log_in(at=at) == 200
    assert [front_ends.post("/auth/refresh", at=at) for _ in range(2)] == [200, 200]
    assert front_ends.chromium.execute_script("return document.cookie") == ""
    assert front_ends.post("/auth/logout", at=at) == 204
    assert front_ends.post("/auth/refresh", at=at) == 401


def test_a_foreign_one_can_neither_use_the_cookie_nor_end_the_session(front_ends: FrontEnds) -> None:
    front_ends.log_in(at=front_ends.listed)

    assert front_ends.post("/auth/refresh", at=front_ends.foreign) is None
    front_ends.submit_form("/auth/logout", at=front_ends.foreign)

    assert front_ends.post("/auth/refresh", at=front_ends.listed) == 200
