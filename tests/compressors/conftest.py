import pytest

from apportion.compressors.elimination import dispatch


@pytest.fixture(params=["compiled", "torch"])
def each_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fast forms: compiled loops, and torch where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(dispatch, "_kernels", dict)
