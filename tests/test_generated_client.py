"""A client that is generated from the OpenAPI document, by a generator of other authors, speaks to the service."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Running, run_command, run_service
from tests.support.steps import PASSWORD, token_of

Get = Callable[[str], Any]


def generate_client(folder: Path) -> None:
    (folder / "openapi.json").write_text(run_command("openapi"))
    scripts = Path(sys.executable).parent
    arguments = ["--path", "openapi.json", "--output-path", "generated_client", "--meta", "none", "--fail-on-warning"]
    subprocess.run(
        [scripts / "openapi-python-client", "generate", *arguments],
        cwd=folder,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},  # it formats by ruff
        check=True,
    )


@pytest.fixture(scope="module")
def get(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """Gets something of the generated package by its name: `get("models.SignUpRequest")`."""
    folder = tmp_path_factory.mktemp("client")
    generate_client(folder)

    def get(name: str) -> Any:
        module, _, attribute = f"generated_client.{name}".rpartition(".")
        return getattr(import_module(module), attribute)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield get


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    with run_service(folder, DATABASE_URL=f"sqlite:///{folder}/users.db") as service:
        service.wait_until_ready()
        yield service


@pytest.mark.slow
def test_a_generated_client_signs_up_activates_logs_in_and_reads_who_it_is(get: Get, running: Running) -> None:
    person = get("models.SignUpRequest")(email="ana@example.com", password=PASSWORD, name="Ana")
    credentials = get("models.LogInRequest")(email="ana@example.com", password=PASSWORD)

    with get("Client")(base_url=running.url) as client:
        signed_up = get("api.accounts.sign_up.sync")(client=client, body=person)
        link = get("models.ActivationRequest")(token=token_of(signed_up.activation_url))
        activated = get("api.accounts.activate.sync")(client=client, body=link)
        tokens = get("api.sessions.log_in.sync")(client=client, body=credentials)
    with get("AuthenticatedClient")(base_url=running.url, token=tokens.access_token) as client:
        me = get("api.my_account.get_me.sync")(client=client)

    assert activated.is_active
    assert (me.id, me.email, me.name) == (signed_up.user_id, "ana@example.com", "Ana")


@pytest.mark.slow
def test_a_generated_client_reads_why_it_is_refused(get: Get, running: Running) -> None:
    credentials = get("models.LogInRequest")(email="nobody@example.com", password=PASSWORD)

    with get("Client")(base_url=running.url) as client:
        refusal = get("api.sessions.log_in.sync_detailed")(client=client, body=credentials)

    assert isinstance(refusal.parsed, get("models.Problem"))
    assert (refusal.status_code, refusal.parsed.code) == (401, "INVALID_CREDENTIALS")
