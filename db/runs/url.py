"""A run store as users name it: a URL, whose password stands in the environment and not in files.

`store` is one of
  a URL                                     sqlite:///runs.sqlite, postgresql://ann@db/apportion
  {"url": URL, "password_env": NAME}        the password is what the variable NAME holds
  "env:NAME"                                the whole URL is what the variable NAME holds
`reference` makes one text of these; texts of that kind may be kept in files, as they hold no
secret where the user wrote none."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from apportion.compressors.errors import ConfigurationError

_ENV = "env:"
_KEY = "password_env"
_SECRETS = ("pass", "pwd", "secret", "token", "odbc_connect")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def reference(store: str | Mapping[str, Any]) -> str:
    """The same as one text: URL, `env:NAME`, or URL with ?password_env=NAME. Raises
    ConfigurationError for what is none of them."""
    if isinstance(store, str):
        return store
    url, name = store.get("url"), store.get(_KEY)
    if not isinstance(url, str) or set(store) - {"url", _KEY}:
        raise ConfigurationError("store: a URL, env:NAME, or {url: URL, password_env: NAME}")
    if name is None:
        return url
    if holds_secret(url):
        raise ConfigurationError(f"store: {masked(url)} holds a password, beside {_KEY}")
    parsed = _parsed(url)
    if parsed is None or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"store: {_KEY} names a variable, beside a URL; got {name!r}")
    return parsed.update_query_dict({_KEY: name}).render_as_string(hide_password=False)


def resolve(store: str | Mapping[str, Any]) -> str:
    """The URL that SQLAlchemy takes, with its password; never to be written or shown. Raises
    ConfigurationError for a variable that is not set here."""
    text = reference(store)
    if text.startswith(_ENV):
        return _variable(text.removeprefix(_ENV))
    parsed = _parsed(text)
    if parsed is None or _KEY not in parsed.query:
        return text
    named = parsed.query[_KEY]
    password = _variable(named if isinstance(named, str) else named[-1])
    plain = parsed.difference_update_query([_KEY]).set(password=password)
    return plain.render_as_string(hide_password=False)


def masked(url: str) -> str:
    """The URL as it may be shown and kept: *** for its password, and for what stands in the query
    under a key that sounds like one. Unchanged where it holds no secret."""
    if not holds_secret(url):
        return url
    parsed = _parsed(url)
    if parsed is None:  # what is secret in it cannot be told
        return re.sub(r"://.*", "://***", url, flags=re.DOTALL)
    if parsed.host and "@" in parsed.host:  # of a password with an @: SQLAlchemy takes the first
        parsed = parsed.set(host=parsed.host.rpartition("@")[2], password="***")
    parsed = parsed.update_query_dict({key: "***" for key in parsed.query if _is_secret(key)})
    return parsed.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def holds_secret(url: str) -> bool:
    """Whether `masked` would change it."""
    parsed = _parsed(url)
    if parsed is None:
        return "://" in url
    secret = parsed.password is not None or "@" in (parsed.host or "")
    return secret or any(_is_secret(key) for key in parsed.query)


def _is_secret(key: str) -> bool:
    return key != _KEY and any(part in key.lower() for part in _SECRETS)


def _parsed(url: str) -> sa.URL | None:
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError):
        return None


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"store: the environment variable {name} is not set here")
    return value
