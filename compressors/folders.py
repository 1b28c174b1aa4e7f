"""The user's folders. A container's user may have no home, or one that is not there."""

from __future__ import annotations

import os
from pathlib import Path

from apportion.compressors.errors import ConfigurationError


def home(instead: str) -> Path:
    """The home folder. Raises ConfigurationError, which says what may be set `instead`, for a user
    without one."""
    try:
        return Path.home()
    except RuntimeError as error:  # no HOME, and no entry in the system's list of users
        raise ConfigurationError(
            f"user {os.getuid()} has no home folder here; set HOME, or {instead}"
        ) from error


def expanded(path: str | Path) -> Path:
    """The path, with a `~` at its beginning as the home folder. Raises ConfigurationError where
    there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"{path}: there is no such home folder here; set HOME") from error


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/apportion, or ~/.cache/apportion. Raises ConfigurationError."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home("XDG_CACHE_HOME") / ".cache") / "apportion"


def data_folder() -> Path:
    """$XDG_DATA_HOME/apportion, or ~/.local/share/apportion. Raises ConfigurationError."""
    given = os.environ.get("XDG_DATA_HOME")
    return Path(given or home("XDG_DATA_HOME") / ".local/share") / "apportion"
