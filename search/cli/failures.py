"""Whatever escapes a command, as one line; with --debug, its traceback before."""

from __future__ import annotations

import argparse
import sys
import traceback

from apportion.compressors.errors import ApportionError

_LONGEST = 500
"""Characters of a line about an error that is not ours."""


def debug_option(parser: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """--debug, which every command takes, and `apportion` before it."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=default,
        help="show the traceback of an error, for reports",
    )


def tell(error: Exception, debug: bool) -> None:
    """Say on stderr what went wrong."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    print(f"apportion: {_line(error)}", file=sys.stderr)


def _line(error: Exception) -> str:
    if isinstance(error, ApportionError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where} (--debug shows where)"
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = f"unexpected {type(error).__name__}" + (f": {said}" if said else "")
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...") + " (--debug shows where)"
