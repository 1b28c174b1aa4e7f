"""Objects full of tensors in Ray's object store, read by all workers of a node where they lie:
Ray's own way gives every worker a copy of each tensor."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import numpy as np
import torch
from torch.storage import TypedStorage

Packed = tuple[bytes, list[np.ndarray]]
"""An object, and the memory of its tensors."""


def pack(value: Any) -> Packed:
    """An object with its CPU tensors taken out, for `ray.put`, which keeps arrays as they are."""
    buffers: list[pickle.PickleBuffer] = []
    with io.BytesIO() as file:
        _pickler(file, buffers).dump(value)
        return file.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def unpack(packed: Packed) -> Any:
    """The object. Its tensors lie in the arrays that were given, which may not be written to: a
    process that does ends."""
    content, arrays = packed
    return pickle.loads(content, buffers=arrays)


def _pickler(file: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> Any:
    """Ray's own pickler, which takes functions too, but for memory."""
    import ray.cloudpickle

    arrays: dict[int, np.ndarray] = {}

    class Pickler(ray.cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            memory = obj._untyped_storage if isinstance(obj, TypedStorage) else None
            if memory is not None and memory.device.type == "cpu" and memory.nbytes():
                # One array for tensors that share memory, which they do afterwards too.
                array = arrays.setdefault(
                    memory.data_ptr(), torch.empty(0, dtype=torch.uint8).set_(memory).numpy()
                )
                return _storage, (array, obj.dtype)
            return super().reducer_override(obj)

    return Pickler(file, protocol=5, buffer_callback=buffers.append)


def _storage(array: np.ndarray, dtype: torch.dtype) -> TypedStorage:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        memory = torch.from_numpy(array).untyped_storage()
    return TypedStorage(wrap_storage=memory, dtype=dtype, _internal=True)
