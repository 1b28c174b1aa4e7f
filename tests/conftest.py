"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real ResNet-20, its images and the published figures, where they lie beside the checkout."""
    if not _SHARED.is_dir():
        pytest.skip("the shared development data does not lie beside this checkout")
    return _SHARED
