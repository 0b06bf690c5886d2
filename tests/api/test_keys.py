"""Keys that were read once go on working whatever becomes of their folder, and a service without any says so."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from src.api.dependencies import runtime_of
from tests.support.factories import DAY
from tests.support.keys import make_ring, rotate_ago
from tests.support.service import Service, StartService
from tests.support.steps import LoggedIn, bearer, create_account, log_in, me, post_log_in, refresh


@dataclass
class Keyed:
    """A service that looks at its folder of keys at each request, and somebody who has logged in."""

    service: Service
    folder: Path
    ana: LoggedIn

    async def statuses(self) -> dict[str, int]:
        return {
            "me": (await me(self.service, self.ana)).status_code,
            "log-in": (await post_log_in(self.service)).status_code,
            "refresh": (await refresh(self.service, self.ana.refresh_token)).status_code,
            "ready": (await self.service.client.get("/health/ready")).status_code,
        }

    async def published(self) -> list[str]:
        jwks = (await self.service.client.get("/.well-known/jwks.json")).json()
        return [key["kid"] for key in jwks["keys"]]


async def start_keyed(start_service: StartService, folder: Path, *, may_generate: bool = False) -> Keyed:
    service = await start_service()
    runtime = runtime_of(service.app)
    runtime.signer = replace(runtime.signer, keys=make_ring(folder, may_generate=may_generate))
    await create_account(service)
    return Keyed(service, folder, await log_in(service))


@pytest.fixture
async def keyed(start_service: StartService, tmp_path: Path) -> Keyed:
    rotate_ago(tmp_path / "keys", DAY)
    return await start_keyed(start_service, tmp_path / "keys")


WELL = {"me": 200, "log-in": 200, "refresh": 200, "ready": 200}


def take_away(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def empty(folder: Path) -> None:
    take_away(folder)
    folder.mkdir()


def put_a_file_in_its_place(folder: Path) -> None:
    take_away(folder)
    folder.touch()


def lose_the_secrets(folder: Path) -> None:
    for path in folder.glob("*.secret"):
        path.unlink()


def begin_to_write_a_key(folder: Path) -> None:
    (folder / "half.pem").write_text("-----BEGIN PRIVATE KEY-----\nMIGH")


def begin_to_write_a_name(folder: Path) -> None:
    (folder / "refresh-20269999T999999Z.secret").write_text("s" * 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        take_away,
        empty,
        put_a_file_in_its_place,
        lose_the_secrets,
        begin_to_write_a_key,
        begin_to_write_a_name,
    ],
)
async def test_keys_that_were_read_go_on_working(keyed: Keyed, harm: Callable[[Path], None]) -> None:
    before = await keyed.published()

    harm(keyed.folder)

    assert await keyed.statuses() == WELL
    assert await keyed.published() == before


async def test_a_folder_that_comes_back_is_read_again(keyed: Keyed, tmp_path: Path) -> None:
    [old] = await keyed.published()

    take_away(keyed.folder)
    await keyed.published()
    (tmp_path / "away").rename(keyed.folder)
    new, _ = rotate_ago(keyed.folder, DAY / 2)

    assert await keyed.published() == [old, new]
    assert await keyed.statuses() == WELL


async def test_keys_under_the_same_names_are_read_again_when_the_folder_comes_back(keyed: Keyed) -> None:
    other, _ = rotate_ago(keyed.folder.with_name("others"), DAY)
    [path], [other_path] = keyed.folder.glob("*.pem"), keyed.folder.with_name("others").glob("*.pem")

    take_away(keyed.folder)
    await keyed.published()
    keyed.folder.with_name("away").rename(keyed.folder)
    path.write_bytes(other_path.read_bytes())

    assert await keyed.published() == [other]


async def test_a_running_development_makes_no_new_keys(start_service: StartService, tmp_path: Path) -> None:
    keyed = await start_keyed(start_service, tmp_path / "keys", may_generate=True)
    before = await keyed.published()

    take_away(keyed.folder)

    assert await keyed.statuses() == WELL
    assert await keyed.published() == before
    assert not keyed.folder.exists()


async def test_the_log_tells_once_that_the_folder_went_and_once_that_it_came(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "src.core.keys")

    take_away(keyed.folder)
    await keyed.statuses()
    went = [*caplog.messages]
    keyed.folder.with_name("away").rename(keyed.folder)
    await keyed.statuses()

    assert len(went) == 1
    assert str(keyed.folder) in went[0]
    assert caplog.messages[1:] == [f"The keys in {keyed.folder} can be read again"]


async def test_a_service_that_has_no_keys_is_not_ready(start_service: StartService, tmp_path: Path) -> None:
    service = await start_service()
    runtime = runtime_of(service.app)
    runtime.signer = replace(runtime.signer, keys=make_ring(tmp_path / "keys", may_generate=False))

    response = await service.client.get("/health/ready")

    assert (response.status_code, response.json()["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert response.json()["detail"] == "There are no keys to sign tokens with: see `python -m src doctor`."


class TestUnknownKeys:
    """Replicas that do not share their keys refuse each other's tokens, which looks like a log-out without a cause."""

    EXPLANATION = "JWT_KEYS_DIR"

    async def test_a_token_of_another_replica_is_explained_once_in_the_log(
        self, keyed: Keyed, start_service: StartService, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = await start_service(jwt_keys_dir=tmp_path / "others")

        refused = [(await me(other, keyed.ana)).status_code for _ in range(3)]
        refused.append((await refresh(other, keyed.ana.refresh_token)).status_code)

        assert refused == [401, 401, 401, 401]
        [told] = [message for message in caplog.messages if self.EXPLANATION in message]
        assert "another replica" in told
        for token in (keyed.ana.access_token, keyed.ana.refresh_token):
            assert not any(part in caplog.text for part in token.split("."))

    @pytest.mark.parametrize("header", ["not.a.token", "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoieCJ9.e30."])
    async def test_what_no_replica_signs_is_not_explained(
        self, service: Service, caplog: pytest.LogCaptureFixture, header: str
    ) -> None:
        response = await service.client.get("/auth/me", headers=bearer(header))

        assert response.status_code == 401
        assert self.EXPLANATION not in caplog.text
