"""URLs of databases as they may be shown: without what is secret in them."""

from __future__ import annotations

import re

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

PASSWORD_VARIABLE = "password_env"
"""Key of a URL's query that names the environment variable with the password."""
_SECRETS = ("pass", "pwd", "secret", "token", "odbc_connect")


def masked(url: str) -> str:
    """The URL as it may be shown and kept: *** for its password, and for what stands in the query
    under a key that sounds like one. Unchanged where it holds no secret."""
    if not holds_secret(url):
        return url
    parsed = parse_url(url)
    if parsed is None:  # what is secret in it cannot be told
        return re.sub(r"://.*", "://***", url, flags=re.DOTALL)
    if parsed.host and "@" in parsed.host:  # of a password with an @: SQLAlchemy takes the first
        parsed = parsed.set(host=parsed.host.rpartition("@")[2], password="***")
    parsed = parsed.update_query_dict({key: "***" for key in parsed.query if _is_secret(key)})
    return parsed.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def holds_secret(url: str) -> bool:
    """Whether `masked` would change it."""
    parsed = parse_url(url)
    if parsed is None:
        return "://" in url
    secret = parsed.password is not None or "@" in (parsed.host or "")
    return secret or any(_is_secret(key) for key in parsed.query)


def parse_url(url: str) -> sa.URL | None:
    """As SQLAlchemy reads it; None where it cannot."""
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError):
        return None


def _is_secret(key: str) -> bool:
    return key != PASSWORD_VARIABLE and any(part in key.lower() for part in _SECRETS)
