"""ONNX models in files: one each, and where protobuf's limit of 2 GB is passed a second one beside
it, with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError

LARGEST = 1_900_000_000
"""Bytes of weights that go into one file; protobuf refuses messages of 2 GB."""


def save(proto: Any, path: Path) -> None:
    """Write an onnx.ModelProto to `path`, its weights to `data_file(path)` where they are too many
    for one file. `proto` is used up."""
    onnx = import_package("onnx")
    if is_large(proto):
        onnx.save_model(
            proto,
            str(path),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=data_file(path).name,
        )
    else:
        path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def data_file(path: Path) -> Path:
    """The weights of a large model; both files stay side by side."""
    return path.with_name(f"{path.name}.data")


def size(path: Path) -> int:
    """Bytes of both files."""
    data = data_file(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def is_large(proto: Any) -> bool:
    """Whether it needs two files, and cannot be used in memory alone."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > LARGEST


def import_package(name: str) -> Any:
    """Raises ConfigurationError without the package."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ConfigurationError(
            f"ONNX models need the package {name}: install apportion[onnx]"
        ) from error
