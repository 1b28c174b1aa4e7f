import pytest

from compressors import elimination


@pytest.fixture(params=["compiled", "torch"])
def each_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fast forms: compiled loops, and torch where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(elimination, "_kernels", dict)
