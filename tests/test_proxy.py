"""The nginx of docs/behind-a-proxy.md in front of the service, as people run it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import make_certificate, tls_to
from tests.support.processes import ROOT, find_program, free_port, run_app, start, wait_until
from tests.support.steps import PASSWORD, token_of

pytestmark = pytest.mark.slow

PERSON = "127.0.0.2"  # so that nginx, at 127.0.0.1, is somebody else
FORGED = "203.0.113.66"
REPLACE, APPEND = "$remote_addr", "$proxy_add_x_forwarded_for"
_UNUSED = ("fastcgi", "uwsgi", "scgi")  # nginx makes a folder for each all the same


class Proxy:
    """nginx on ports of its own, with the service behind it at `upstream`."""

    def __init__(self, folder: Path, upstream: str, *, forwarded_for: str = REPLACE) -> None:
        self.folder, self.port, self.http_port = folder, free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._certificate = make_certificate(folder)
        page = (ROOT / "docs" / "behind-a-proxy.md").read_text("utf-8")
        [example] = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
        for documented, here in {
            "listen 80;": f"listen 127.0.0.1:{self.http_port};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "auth.example.com.key": "auth.example.com.pem",
            "/etc/nginx/auth.example.com.pem": str(self._certificate),
            "/var/log/nginx": str(folder),
            "http://127.0.0.1:8000": upstream,
            f"X-Forwarded-For {REPLACE}": f"X-Forwarded-For {forwarded_for}",
        }.items():
            assert documented in example
            example = example.replace(documented, here)
        paths = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", *_UNUSED))
        # Started by root, it would become a user who may not open the socket in the test's folder.
        head = f"user root; daemon off; pid {folder}/nginx.pid; events {{}}"
        (folder / "nginx.conf").write_text(f"{head} http {{ {paths}\n{example} }}")

    @property
    def logs(self) -> str:
        return "".join(log.read_text() for log in self.folder.glob("auth.*.log"))

    @contextmanager
    def running(self) -> Iterator[httpx.Client]:
        """nginx as it starts, and a client of it."""
        nginx = [find_program("nginx", "/usr/sbin/nginx"), "-c", f"{self.folder}/nginx.conf"]
        with start([*nginx, "-e", f"{self.folder}/start.log"], self.folder / "start.log", {}), self._client() as client:
            yield client

    def _client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(verify=tls_to(self._certificate), local_address=PERSON)
        return httpx.Client(transport=transport, base_url=self.url)


def status_of(client: httpx.Client) -> int | None:
    """Of an answer, if there is one."""
    try:
        return client.get("/health/ready").status_code
    except httpx.TransportError:
        return None


@contextmanager
def service_behind(proxy: Proxy, *arguments: str, port: int = 0, trusted: str) -> Iterator[httpx.Client]:
    """A client of the service, through the proxy."""
    environment = {
        "DATABASE_URL": f"sqlite:///{proxy.folder}/users.db",
        "SERVER_PUBLIC_URL": proxy.url,
        "FORWARDED_ALLOW_IPS": trusted,
        "AUTH_BCRYPT_ROUNDS": "4",
    }
    app = run_app("src.api.app:app", port, proxy.folder / "service.log", *arguments, **environment)
    with app, proxy.running() as client:
        wait_until(lambda: status_of(client) == 200)
        yield client


def place_of_sign_up(client: httpx.Client) -> str | None:
    """Where a person is who says that they are elsewhere, as their session tells."""
    body = {"email": "ana@example.com", "password": PASSWORD}
    link = client.post("/auth/signup", json=body).json()["activation_url"]
    client.post("/auth/activate", json={"token": token_of(link)})
    tokens = client.post("/auth/login", json=body, headers={"X-Forwarded-For": FORGED}).json()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    place: str | None = client.get("/auth/sessions", headers=bearer).json()["items"][0]["client_address"]
    return place


@pytest.mark.parametrize(
    ("forwarded_for", "trusted", "place"),
    [
        (REPLACE, "127.0.0.1", PERSON),
        (APPEND, "127.0.0.1", PERSON),
        (REPLACE, "*", PERSON),
        (APPEND, "*", FORGED),
        (REPLACE, "10.0.0.2", "127.0.0.1"),
    ],
)
def test_where_people_are_taken_to_be(tmp_path: Path, forwarded_for: str, trusted: str, place: str) -> None:
    port = free_port()
    proxy = Proxy(tmp_path, f"http://127.0.0.1:{port}", forwarded_for=forwarded_for)

    with service_behind(proxy, port=port, trusted=trusted) as client:
        assert place_of_sign_up(client) == place

    warned = "X-Forwarded-For came from 127.0.0.1" in (tmp_path / "service.log").read_text()
    assert warned == (trusted == "10.0.0.2")


@pytest.mark.parametrize(("trusted", "place"), [("*", PERSON), ("127.0.0.1", None)])
def test_where_people_are_taken_to_be_behind_a_unix_socket(tmp_path: Path, trusted: str, place: str | None) -> None:
    proxy = Proxy(tmp_path, f"http://unix:{tmp_path}/socket")

    with service_behind(proxy, "--uds", f"{tmp_path}/socket", trusted=trusted) as client:
        assert place_of_sign_up(client) == place


def test_tls_request_ids_and_tokens(tmp_path: Path) -> None:
    port = free_port()
    proxy = Proxy(tmp_path, f"http://127.0.0.1:{port}")

    with service_behind(proxy, port=port, trusted="127.0.0.1") as client:
        page = client.get("/activate", params={"token": "canary"})
        plain = httpx.get(f"http://127.0.0.1:{proxy.http_port}/activate", params={"token": "canary"})

    assert page.status_code == 400
    assert page.headers["strict-transport-security"] == "max-age=31536000"
    assert page.headers["x-request-id"] in proxy.logs
    assert plain.headers["location"] == "https://auth.example.com/activate?token=canary"
    with proxy.running() as client:  # without the service
        wait_until(lambda: status_of(client) == 502)
        assert client.get("/activate", params={"token": "canary"}).status_code == 502
    assert "/activate" in proxy.logs
    assert "canary" not in proxy.logs
