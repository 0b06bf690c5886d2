"""The developer's own environment must not decide what the tests see: this runs before anything of the service."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

from src.core.settings import Settings

pytest.register_assert_rewrite("tests.support")

Settings.model_config["env_file"] = None
for _name in Settings.model_fields:
    os.environ.pop(_name.upper(), None)
os.environ |= {
    "APP_ENV": "test",
    "AUTH_BCRYPT_ROUNDS": "4",
    "DATABASE_URL": "sqlite+aiosqlite:///:memory:",
    "JWT_KEYS_DIR": tempfile.mkdtemp(prefix="keys-"),
}
atexit.register(shutil.rmtree, os.environ["JWT_KEYS_DIR"], ignore_errors=True)

gc.set_threshold(20_000, 20, 50)  # each full collection goes through all that was imported
