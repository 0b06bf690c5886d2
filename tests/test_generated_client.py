"""A client that a generator makes of the API document, against the service as people run it."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.api.app import create_app
from tests.support.processes import run_service
from tests.support.service import make_settings
from tests.support.steps import PASSWORD, token_of


@pytest.mark.slow
def test_a_generated_client_signs_up_logs_in_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(create_app(make_settings()).openapi()))
    generator = str(Path(sys.executable).with_name("openapi-python-client"))
    arguments = ["generate", "--path", str(document), "--output-path", str(tmp_path / "accounts"), "--meta", "none"]
    subprocess.run([generator, *arguments], check=True, capture_output=True)
    monkeypatch.syspath_prepend(tmp_path)
    client, models = importlib.import_module("accounts.client"), importlib.import_module("accounts.models")
    sign_up, activate, log_in, get_me = (
        importlib.import_module(f"accounts.api.{path}").sync
        for path in ("accounts.sign_up", "accounts.activate", "sessions.log_in", "my_account.get_me")
    )

    with run_service(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/users.db", AUTH_BCRYPT_ROUNDS="4") as service:
        service.wait_until_ready()
        with client.Client(base_url=service.url, raise_on_unexpected_status=True) as anonymous:
            body = models.SignUpRequest(email="ana@example.com", password=PASSWORD, name="Ana")
            signed_up = sign_up(client=anonymous, body=body)
            activate(client=anonymous, body=models.ActivationRequest(token=token_of(signed_up.activation_url)))
            pair = log_in(client=anonymous, body=models.LogInRequest(email="ana@example.com", password=PASSWORD))
        with client.AuthenticatedClient(base_url=service.url, token=pair.access_token) as ana:
            me = get_me(client=ana)

    assert (me.email, me.name, me.second_factor.is_set) == ("ana@example.com", "Ana", False)
