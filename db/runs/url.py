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

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.secrets import PASSWORD_VARIABLE, holds_secret, masked, parse_url

_ENV = "env:"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def reference(store: str | Mapping[str, Any]) -> str:
    """The same as one text: URL, `env:NAME`, or URL with ?password_env=NAME. Raises
    ConfigurationError for what is none of them."""
    if isinstance(store, str):
        return store
    url, name = store.get("url"), store.get(PASSWORD_VARIABLE)
    if not isinstance(url, str) or set(store) - {"url", PASSWORD_VARIABLE}:
        raise ConfigurationError("store: a URL, env:NAME, or {url: URL, password_env: NAME}")
    if name is None:
        return url
    if holds_secret(url):
        raise ConfigurationError(
            f"store: {masked(url)} holds a password, beside {PASSWORD_VARIABLE}"
        )
    parsed = parse_url(url)
    if parsed is None or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"store: {PASSWORD_VARIABLE} names a variable, beside a URL; got {name!r}"
        )
    return parsed.update_query_dict({PASSWORD_VARIABLE: name}).render_as_string(hide_password=False)


def resolve(store: str | Mapping[str, Any]) -> str:
    """The URL that SQLAlchemy takes, with its password; never to be written or shown. Raises
    ConfigurationError for a variable that is not set here."""
    text = reference(store)
    if text.startswith(_ENV):
        return _variable(text.removeprefix(_ENV))
    parsed = parse_url(text)
    if parsed is None or PASSWORD_VARIABLE not in parsed.query:
        return text
    named = parsed.query[PASSWORD_VARIABLE]
    password = _variable(named if isinstance(named, str) else named[-1])
    plain = parsed.difference_update_query([PASSWORD_VARIABLE]).set(password=password)
    return plain.render_as_string(hide_password=False)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"store: the environment variable {name} is not set here")
    return value
