import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from src.core.settings import Settings, container_quota, default_hash_threads, get_settings, usable_cores
from tests.support.service import make_production_settings, make_settings

ROOT = Path(__file__).parents[2]


def example_lines() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    return dict(re.fullmatch(r"#?([A-Z_]+)=(.*)", line).groups() for line in lines if re.match(r"#?[A-Z_]+=", line))  # type: ignore[union-attr, misc]  # the condition has matched


def test_the_example_names_every_setting_and_no_other() -> None:
    assert list(example_lines()) == [name.upper() for name in Settings.model_fields]


def test_the_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    defaults = Settings()
    for name, value in example_lines().items():
        monkeypatch.setenv(name, value)

    assert Settings() == defaults


def test_the_example_says_in_a_line_what_each_setting_means() -> None:
    text = (ROOT / ".env.example").read_text("utf-8")

    for name in example_lines():
        assert re.search(rf"^# .+\n#?{name}=", text, re.MULTILINE), name


def test_the_readme_lists_every_setting() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")

    for name in Settings.model_fields:
        assert f"| `{name.upper()}` |" in readme


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("app_env", "staging"),
        ("server_public_url", "localhost:8000"),
        ("database_url", "mysql://localhost/users"),
        ("auth_password_min_length", 7),
        ("auth_bcrypt_rounds", 3),
        ("auth_hibp_url", "api.pwnedpasswords.com/range/"),
        ("auth_hash_threads", 0),
        ("auth_hash_queue_size", 1),
        ("auth_activation_ttl_seconds", 0),
        ("auth_activation_url_template", "https://app.example.com/activate"),
        ("rate_limit_requests_per_origin", "300"),
        ("rate_limit_requests_per_origin", "0/1m"),
        ("rate_limit_requests_per_origin", "300/1 minute"),
    ],
)
def test_a_value_that_cannot_work_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        make_settings(**{name: value})


@pytest.mark.parametrize("flag", ["auth_return_token_in_response", "auth_auto_activate"])
def test_production_refuses_what_is_unsafe(flag: str) -> None:
    values: dict[str, Any] = {flag: True}

    make_settings(app_env="development", **values)
    with pytest.raises(ValidationError, match=flag.upper()):
        make_production_settings(**values)


@pytest.mark.parametrize(
    "url",
    [
        "http://accounts.example.com",
        "http://localhost:8000",
        "https://localhost",
        "https://LOCALHOST",
        "https://127.0.0.1",
        "https://127.1.2.3:8443",
        "https://[::1]:8000",
    ],
)
def test_production_needs_a_public_url_that_others_reach_over_tls(url: str) -> None:
    make_settings(server_public_url=url)
    with pytest.raises(ValidationError, match=r"SERVER_PUBLIC_URL is no https:// address .* set it"):
        make_production_settings(server_public_url=url)


@pytest.mark.parametrize("link", ["activation", "password_reset", "email_change", "invitation"])
def test_production_sends_no_link_that_travels_in_clear(link: str) -> None:
    name = f"auth_{link}_url_template"

    for template in ("https://app.example.com/?t={token}", "example-app://link/{token}"):
        make_production_settings(**{name: template})
    with pytest.raises(ValidationError, match=f"{name.upper()} is http://"):
        make_production_settings(**{name: "http://localhost:3000/?t={token}"})


def test_production_needs_hashes_that_cost_something() -> None:
    make_production_settings(auth_bcrypt_rounds=10)
    with pytest.raises(ValidationError, match=r"AUTH_BCRYPT_ROUNDS .* use 10 at least"):
        make_production_settings(auth_bcrypt_rounds=9)


class TestJwtResources:
    def test_they_are_uris_separated_by_commas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JWT_RESOURCES", "https://shop.example.com , urn:example:blog,")

        assert make_settings().jwt_resources == ("https://shop.example.com", "urn:example:blog")

    @pytest.mark.parametrize("written", ["shop", "https://shop.example.com#top", "https://a.example b", "/shop"])
    def test_what_is_no_absolute_uri_or_has_a_fragment_is_refused(self, written: str) -> None:
        with pytest.raises(ValidationError, match="absolute URI"):
            make_settings(jwt_resources=written)

    def test_they_are_not_us(self) -> None:
        with pytest.raises(ValidationError, match="JWT_AUDIENCE"):
            make_settings(jwt_audience="https://id.example.com", jwt_resources="https://id.example.com")


class TestCorsAllowedOrigins:
    @pytest.mark.parametrize(
        ("written", "origins"),
        [
            ("", ()),
            ("https://app.example.com", ("https://app.example.com",)),
            ("https://a.example.com , http://localhost:3000,", ("https://a.example.com", "http://localhost:3000")),
            ("https://App.Example.com:443", ("https://app.example.com",)),
            ("https://bücher.example", ("https://xn--bcher-kva.example",)),
            ("http://[::1]:3000", ("http://[::1]:3000",)),
        ],
    )
    def test_they_are_spelt_as_browsers_send_them(
        self, monkeypatch: pytest.MonkeyPatch, written: str, origins: tuple[str, ...]
    ) -> None:
        monkeypatch.setenv("CORS_ALLOWED_ORIGINS", written)

        assert make_settings().cors_allowed_origins == origins

    @pytest.mark.parametrize(
        "written",
        [
            "null",
            "app.example.com",
            "https://app.example.com/",
            "https://app.example.com/path",
            "https://app.example.com?query",
            "https://user@app.example.com",
            "https://*.example.com",
            "https://app.example.com:99999",
            "ftp://app.example.com",
            "https://a.example.com https://b.example.com",
            '["https://app.example.com"]',
        ],
    )
    def test_what_no_browser_sends_is_refused(self, written: str) -> None:
        with pytest.raises(ValidationError, match="scheme://host"):
            make_settings(cors_allowed_origins=written)

    def test_any_origin_is_for_development_alone(self) -> None:
        make_settings(app_env="development", cors_allowed_origins="*")

        with pytest.raises(ValidationError, match=r"CORS_ALLOWED_ORIGINS=\*"):
            make_production_settings(cors_allowed_origins="https://app.example.com, *")

    def test_any_origin_and_the_refresh_cookie_are_refused_together(self) -> None:
        with pytest.raises(ValidationError, match="AUTH_REFRESH_COOKIE"):
            make_settings(cors_allowed_origins="*", auth_refresh_cookie=True)


def test_wrong_settings_end_the_process_with_a_line_for_each_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://root:canary@localhost/users")
    monkeypatch.setenv("AUTH_BCRYPT_ROUNDS", "canary")
    get_settings.cache_clear()

    with pytest.raises(SystemExit) as ended:
        get_settings()

    assert "\n  DATABASE_URL: " in str(ended.value)
    assert "\n  AUTH_BCRYPT_ROUNDS: " in str(ended.value)
    assert "canary" not in str(ended.value)
    get_settings.cache_clear()


def test_the_database_url_is_in_no_representation() -> None:
    assert "canary" not in repr(make_settings(database_url="postgresql://root:canary@localhost/users"))


class TestHashThreads:
    @pytest.mark.parametrize(("workers", "threads"), [("", 8), ("0", 8), ("x", 8), ("1", 8), ("3", 2), ("99", 1)])
    def test_workers_share_the_cores(self, workers: str, threads: int) -> None:
        assert default_hash_threads(8, workers) == threads

    def test_the_number_of_workers_is_read_as_uvicorn_reads_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WEB_CONCURRENCY", "1000")

        assert make_settings().auth_hash_threads == 1

    @pytest.mark.parametrize(
        ("files", "quota"),
        [
            ({"cpu.max": "150000 100000\n"}, 1.5),
            ({"cpu.max": "max 100000\n"}, None),
            ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
            ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
            ({}, None),
        ],
    )
    def test_the_quota_of_a_container_is_read(self, tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)

        assert container_quota(tmp_path) == quota

    def test_a_quota_of_less_than_a_core_is_one(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("50000 100000\n")

        assert usable_cores(tmp_path) == 1
