"""Passwords of run stores: named by variables, and never shown."""

import pytest

from apportion.compressors.errors import ConfigurationError
from apportion.db.runs.url import holds_secret, masked, reference, resolve

SECRET = "hunter"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{SECRET}@db/apportion",
        f"postgresql://ann:{SECRET}/{SECRET}@db:5432/apportion",
        f"postgresql://ann:a@{SECRET}@db/apportion",
        f"postgresql://ann:a:{SECRET}?b@db/apportion",
        f"postgresql://ann:{SECRET}%40x@db/apportion?sslmode=require",
        f"postgresql://ann@db/apportion?password={SECRET}",
        f"postgresql://ann@db/apportion?password={SECRET}&password={SECRET}2",
        f"postgresql://db/apportion?user=ann&sslpassword={SECRET}",
        f"postgresql://:{SECRET}@db/apportion",
        f"postgresql://db:{SECRET}/apportion",
        f"mssql://?odbc_connect=PWD%3D{SECRET}",
    ],
)
def test_a_password_is_masked_wherever_a_url_may_hold_it(url: str) -> None:
    shown = masked(url)
    assert SECRET not in shown
    assert "***" in shown
    assert holds_secret(url)
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////srv/a b/what?ever.sqlite",
        "sqlite:///C:/x:y@z.sqlite",
        "postgresql://ann@db/apportion?host=/run/pg",
        "env:APPORTION_STORE_URL",
        "nonsense",
    ],
)
def test_a_url_without_a_secret_is_shown_as_it_is(url: str) -> None:
    assert masked(url) == url
    assert not holds_secret(url)
    assert reference(url) == url


def test_a_variable_gives_the_password_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", f"{SECRET}/@:?")
    monkeypatch.setenv("URL", f"postgresql://ann:{SECRET}@db/x")
    named = {"url": "postgresql://ann@db/x?sslmode=require", "password_env": "PW"}
    kept = reference(named)
    assert SECRET not in kept
    assert masked(kept) == kept
    assert resolve(kept) == resolve(named)
    assert resolve(named) == f"postgresql://ann:{SECRET}%2F%40%3A%3F@db/x?sslmode=require"
    assert resolve("env:URL") == f"postgresql://ann:{SECRET}@db/x"
    assert resolve("sqlite:///a?b.sqlite") == "sqlite:///a?b.sqlite"


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("env:NOT_THERE", "NOT_THERE is not set"),
        ({"url": "postgresql://ann@db/x", "password_env": "NOT_THERE"}, "NOT_THERE is not set"),
        ({"url": "postgresql://ann:hunter@db/x", "password_env": "PW"}, "holds a password"),
        ({"url": "postgresql://ann@db/x", "password_env": "a b"}, "names a variable"),
        ({"url": 3}, "a URL, env:NAME"),
        ({"url": "sqlite:///x", "password": "hunter"}, "a URL, env:NAME"),
    ],
)
def test_what_cannot_be_resolved_is_named_without_a_secret(store: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as raised:
        resolve(store)  # type: ignore[arg-type]
    assert SECRET not in str(raised.value)
