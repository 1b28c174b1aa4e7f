"""Models of Hugging Face's by name: where their weights, configuration and tokenizer lie."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ModelError

PREFIX = "huggingface:"
"""Before the name of such a model in a job file."""
_MODULES = "modules.json"
"""What sentence-transformers writes: the steps from a sentence to its embedding."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """name: a name on the hub, or a folder; options: what `from_pretrained` of transformers' Auto
    classes (models and tokenizers) takes besides it, where the files lie in a subfolder or in GGUF;
    modules: the steps after the model of a sentence-transformers folder, (type, folder) each."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    modules: tuple[tuple[str, str], ...] = ()

    @property
    def weights(self) -> str:
        """What its weights lie in."""
        return "GGUF weights" if "gguf_file" in self.options else "safetensors"

    def inside(self, file: str) -> str:
        """A file in the folder of the weights, as `find` takes it."""
        folder = self.options.get("subfolder")
        return f"{folder}/{file}" if folder else file

    def find(self, file: str) -> Path | None:
        """Where a file beside the model lies, relative to the whole; None where there is none.
        Raises ModelError."""
        from transformers.utils import cached_file

        try:
            found = cached_file(
                self.name,
                file,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"model '{PREFIX}{self.name}': no {file} ({error})") from error
        return None if found is None else Path(found)

    def read(self, file: str) -> Any:
        """The content of a JSON file beside the model; None where there is none. Raises
        ModelError."""
        found = self.find(file)
        try:
            return None if found is None else json.loads(found.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model '{PREFIX}{self.name}': {file} cannot be read ({error})"
            ) from error


def is_path(name: str) -> bool:
    """Whether `name` (without the prefix) is that of a folder or file, and not one on the hub:
    paths begin with a dot, a slash or a tilde."""
    return name.startswith((".", "/", "~"))


def pretrained(name: str) -> Pretrained:
    """What `name` (without the prefix) stands for: a name on the hub; a folder that
    `save_pretrained` or sentence-transformers wrote; a folder with one GGUF file, or that file.
    Raises ModelError without transformers, for a path where nothing is, and where a folder holds
    several GGUF files."""
    try:
        import transformers  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ModelError(
            f"model '{PREFIX}{name}' needs the package transformers: install apportion[huggingface]"
        ) from error
    path = Path(name).expanduser()
    if is_path(name) and not path.exists():
        raise ModelError(f"model '{PREFIX}{name}': no such folder or file")
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path.parent, path.name)
    if path.is_dir() and not any(path.rglob("*.safetensors")):
        files = sorted(each.name for each in path.glob("*.gguf"))
        if len(files) > 1:
            raise ModelError(
                f"model '{PREFIX}{name}': the folder holds {', '.join(files)}; name one of these "
                "files instead of the folder"
            )
        if files:
            return _gguf(path, files[0])
    name = str(path) if is_path(name) else name
    steps = Pretrained(name).read(_MODULES)
    if not isinstance(steps, list) or not steps:
        return Pretrained(name)
    (_, folder), *others = [(_last(step.get("type")), str(step.get("path", ""))) for step in steps]
    return Pretrained(name, {"subfolder": folder} if folder else {}, tuple(others))


def _gguf(folder: Path, file: str) -> Pretrained:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"model '{PREFIX}{folder / file}' needs the package {package}: install "
                "apportion[gguf]"
            )
    return Pretrained(str(folder), {"gguf_file": file})


def _last(kind: object) -> str:
    """sentence_transformers.models.Pooling -> Pooling."""
    return str(kind).rpartition(".")[2]


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports, which would break ours."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bar = gguf.tqdm
    gguf.tqdm = _plainly  # it asks tqdm itself, which no switch of transformers' reaches
    try:
        yield
    finally:
        gguf.tqdm = bar
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _plainly(items: Any, **_: Any) -> Any:
    """tqdm without a bar."""
    return items
