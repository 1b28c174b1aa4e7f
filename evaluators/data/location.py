"""Where a file of data lies, as a job file says it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

Location = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
]
"""A file or a URL; a Path would make one slash of a URL's two."""
