"""Export formats by their names: the project's own, and those that a user registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.search.export.compressed_tensors import CompressedTensors
from apportion.search.export.formats import Format, Packed, Safetensors
from apportion.search.export.gguf import Gguf
from apportion.search.export.huggingface import HuggingFace
from apportion.search.export.onnx_file import Onnx
from apportion.search.export.program import Program

PROFILE = "profile"
"""The name by which the profile alone is asked for, in all its forms."""
_FORMATS: dict[str, type[Format]] = {
    "safetensors": Safetensors,
    "compressed": Packed,
    "torch": Program,
    "onnx": Onnx,
    "huggingface": HuggingFace,
    "compressed-tensors": CompressedTensors,
    "gguf": Gguf,
}


def register(name: str) -> Callable[[type[Format]], type[Format]]:
    """Class decorator: make an export format available as `name`."""

    def keep(cls: type[Format]) -> type[Format]:
        _FORMATS[name] = cls
        return cls

    return keep


def names() -> list[str]:
    """All that can be asked for: the project's own formats, registered ones, and the profile."""
    return [*_FORMATS, PROFILE]


def resolve(asked: Sequence[str]) -> list[Format]:
    """The formats of these names, each once; the profile is none. Raises UnknownNameError, and
    ConfigurationError where two of them write the same file."""
    found: dict[str, Format] = {}
    for name in dict.fromkeys(asked):
        if name == PROFILE:
            continue
        if name not in _FORMATS:
            raise UnknownNameError("export format", name, names())
        form = _FORMATS[name]()
        if form.file in found:
            raise ConfigurationError(
                f"export format {name!r} writes {form.file}, as another one that is asked for does"
            )
        found[form.file] = form
    return list(found.values())
