"""What a test needs that pip does not install."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test with the reason; in CI, which installs what the tests need, fail it."""
    if os.environ.get("APPORTION_CI"):
        pytest.fail(what)
    pytest.skip(what)
