"""Text files that users and other tools write: what is read, in which encodings, up to which size;
numbers in them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from apportion.compressors.errors import DocumentError

MOST = 16 << 20
"""Bytes of a file that is read where nothing else is asked for."""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def read_text(path: Path, most: int = MOST) -> str:
    """A file's text: UTF-8, or UTF-16 with a byte-order mark, as spreadsheets save it; line ends
    of any kind become newlines. Raises DocumentError for what is no regular file, has more than
    `most` bytes, or is no such text."""
    try:
        if not path.is_file():
            if not path.exists():
                raise DocumentError("No such file or directory")
            raise DocumentError("not a file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DocumentError(error.strerror or str(error)) from error
    except ValueError as error:  # a path that no file can have
        raise DocumentError(str(error)) from error
    if len(content) > most:
        raise DocumentError(f"has more than {_size(most)}, which is too large for such a file")
    return decoded(content)


def decoded(content: bytes) -> str:
    """See `read_text`."""
    encoding = "utf-16" if content.startswith(_MARKS) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"is no {encoding[:5].upper()} text (byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DocumentError("has zero bytes in it: no text, or UTF-16 without its byte-order mark")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def number(text: object) -> float:
    """A finite decimal number as files have it, such as 0.25 or 1e-3. Raises DocumentError, which
    says what may have been meant."""
    word = str(text).strip()
    if _DECIMAL.fullmatch(word) and abs(value := float(word)) < float("inf"):
        return value
    raise DocumentError(f"a number is needed, not {str(text)!r:.60}{meant(word)}")


def meant(word: str) -> str:
    """What to write instead of a number in another country's or language's spelling; '' where there
    is nothing to say."""
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+[A-Za-z%]*", word):
        return f" (write {word.replace(',', '.')}, with a point)"
    if re.fullmatch(r"[-+]?[0-9.]+(_[0-9.]+)+[A-Za-z%]*", word):
        return f" (write {word.replace('_', '')}, without _)"
    return ""


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >> 20 else f"{count} bytes"
