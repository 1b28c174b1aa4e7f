"""Weights and images that are none."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.robustness.case import Case
from tests.robustness.whole import JOB, both, changed, text

SEARCH = ("search", "FOLDER/job.yaml")
State = dict[str, Tensor]


def _weights(change: Callable[[State], Any], name: str = "model.safetensors") -> Any:
    """The state dict changed in place, or what `change` returns instead."""

    def prepare(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        made = change(state)
        made = state if made is None else made
        if name.endswith(".safetensors"):
            save_file({key: value.contiguous() for key, value in made.items()}, folder / name)
        else:
            torch.save(made, folder / name)
            changed("workload", "weights", to=name)(folder)

    return prepare


def _first(change: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state["conv1.weight"] = change(state["conv1.weight"])

    return apply


def _set(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def _without(state: State, key: str) -> State:
    return {name: value for name, value in state.items() if name != key}


class Pickled:
    """Something that is no tensor, in a pickle."""


_WEIGHTS: list[tuple[str, Any, str]] = [
    ("missing", changed("workload", "weights", to="none.safetensors"), "none.safetensors"),
    ("a folder", changed("workload", "weights", to="database/layers"), "layers"),
    ("empty", text("model.safetensors", b""), "model.safetensors"),
    ("text", text("model.safetensors", "hello"), "model.safetensors"),
    ("huge header", text("model.safetensors", b"\xff" * 64), "model.safetensors"),
    (
        "cut",
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:5000]
        ),
        "model.safetensors",
    ),
    ("a tensor less", _weights(lambda s: _without(s, "conv1.weight")), "missing: conv1.weight"),
    ("a tensor more", _weights(lambda s: s.update(more=torch.zeros(1))), "unexpected: more"),
    ("another shape", _weights(_first(lambda t: t[:2])), "of another shape: conv1.weight"),
    ("nan", _weights(_first(_set(float("nan")))), "conv1.weight"),
    ("infinite", _weights(_first(_set(float("inf")))), "conv1.weight"),
    ("1e30", _weights(_first(lambda t: t * 1e30)), "conv1|layer|infinite|finite|large"),
    ("int8", _weights(_first(lambda t: (10 * t).to(torch.int8))), "conv1.weight.*int8"),
    ("complex", _weights(_first(lambda t: t.to(torch.complex64)), "w.pt"), "conv1.weight.*complex"),
    ("bool", _weights(_first(lambda t: t > 0)), "conv1.weight.*bool"),
    ("none of them", _weights(lambda _: {"a": torch.zeros(1)}), "missing"),
    ("integer keys", _weights(lambda _: {0: torch.zeros(1), 1: torch.zeros(2)}, "w.pt"), "w.pt"),
    ("a list", _weights(lambda _: [1, 2], "w.pt"), "w.pt"),
    ("a tensor", _weights(lambda _: torch.zeros(3), "w.pt"), "w.pt"),
    ("numbers", _weights(lambda _: {"conv1.weight": 3}, "w.pt"), "w.pt"),
    ("an object", _weights(lambda _: Pickled(), "w.pt"), "w.pt"),
    ("nothing", _weights(lambda _: {}, "w.pt"), "w.pt"),
    (
        "a plain pickle",
        both(text("w.pt", pickle.dumps({"a": 1})), changed("workload", "weights", to="w.pt")),
        "w.pt",
    ),
    (
        "another suffix",
        both(text("w.bin", b"x"), changed("workload", "weights", to="w.bin")),
        "w.bin",
    ),
]


def _npz(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        with np.load(folder / "calibration.npz") as file:
            arrays = dict(file)
        change(arrays)
        np.savez(folder / "calibration.npz", **arrays)

    return prepare


def _of(key: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return _npz(lambda arrays: arrays.update({key: change(arrays[key])}))


_NPZ: list[tuple[str, Any, str]] = [
    ("missing", lambda f: (f / "calibration.npz").unlink(), ""),
    ("empty", text("calibration.npz", b""), ""),
    ("text", text("calibration.npz", "hello"), ""),
    ("cut", lambda f: _cut(f / "calibration.npz"), ""),
    ("a pickle", text("calibration.npz", pickle.dumps([1])), ""),
    ("without labels", _npz(lambda a: a.pop("labels")), "labels"),
    ("without images", _npz(lambda a: a.pop("images")), "images"),
    ("fewer labels", _of("labels", lambda v: v[:-1]), "labels|images"),
    ("labels of text", _of("labels", lambda v: v.astype("U")), "labels"),
    ("labels of floats", _of("labels", lambda v: v + 0.5), "labels"),
    ("labels of objects", _of("labels", lambda v: v.astype(object)), ""),
    ("labels in two dimensions", _of("labels", lambda v: v[:, None]), "labels"),
    ("labels below 0", _of("labels", lambda v: v.astype(int) - 5), "label"),
    ("labels above the classes", _of("labels", lambda v: v.astype(int) + 50), "label"),
    ("images of floats", _of("images", lambda v: v / 255), "images"),
    ("images of bools", _of("images", lambda v: v > 9), "images"),
    ("images of one dimension", _of("images", lambda v: v.reshape(-1)), "images"),
    ("no images", _npz(lambda a: a.update(images=a["images"][:0], labels=a["labels"][:0])), ""),
    ("five channels", _of("images", lambda v: np.stack([v] * 5, -1)), "channel|images"),
]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _png(size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (size, size), 9).save(file, "png")
    return file.getvalue()


def _folders(**files: bytes) -> Callable[[Path], None]:
    """An imagefolder job with these files in calibration/, and one good image in test/."""

    def prepare(folder: Path) -> None:
        for name, content in files.items():
            text(f"calibration/{name}", content)(folder)
        text("test/0/a.png", _png())(folder)
        data = {"kind": "imagefolder", "calibration": "calibration", "test": "test", "size": 8}
        changed("workload", "data", to={**data, "resize": 8})(folder)
        (folder / "calibration").mkdir(exist_ok=True)

    return prepare


_FOLDERS: list[tuple[str, Any, str]] = [
    ("missing", changed("workload", "data", to={**JOB["workload"]["data"], "test": "x"}), "x"),
    ("empty", _folders(), "calibration"),
    ("without classes", _folders(**{"a.png": _png()}), "calibration"),
    ("an empty class", _folders(**{"0/a.txt": b"hello"}), "calibration"),
    ("an image of text", _folders(**{"0/a.png": b"hello"}), r"a\.png"),
    ("an image cut", _folders(**{"0/a.png": _png(64)[:70]}), r"a\.png"),
    ("an image of nothing", _folders(**{"0/a.png": b""}), r"a\.png"),
]


def cases() -> Iterator[Case]:
    for name, prepare, says in _WEIGHTS:
        yield Case(f"weights: {name}", prepare, SEARCH, says)
    for name, prepare, says in _NPZ:
        yield Case(f"npz: {name}", prepare, SEARCH, f"calibration.*({says})")
    for name, prepare, says in _FOLDERS:
        yield Case(f"images: {name}", prepare, SEARCH, says)
