"""The updates of `tile` against numpy, for every width of vector register that a machine may
have."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import DTypeLike

njit = pytest.importorskip("numba").njit

from apportion.compressors.elimination.tile import tile  # noqa: E402


@pytest.mark.parametrize("register", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "vectors", "k"), [(8, 3, 5), (4, 3, 1), (1, 6, 40)])
def test_a_tile_is_updated_where_it_lies(
    register: int, dtype: DTypeLike, rows: int, vectors: int, k: int
) -> None:
    update = tile(rows, vectors, register)

    @njit
    def run(c: object, a: object, b: object, ldc: int, lda: int, ldb: int) -> None:
        update(c, 3, ldc, a, 2, lda, b, 1, ldb, k)

    rng = np.random.default_rng(0)
    width = vectors * register // np.dtype(dtype).itemsize
    a, b = (
        rng.normal(size=(k, rows + 3)).astype(dtype),
        rng.normal(size=(k, width + 2)).astype(dtype),
    )
    c = rng.normal(size=(rows, width + 5)).astype(dtype)
    expected = c.copy()
    expected[:, 3 : 3 + width] -= a[:, 2 : 2 + rows].T @ b[:, 1 : 1 + width]
    run(c.reshape(-1), a.reshape(-1), b.reshape(-1), width + 5, rows + 3, width + 2)
    np.testing.assert_allclose(c, expected, rtol=1e-4 if dtype == np.float32 else 1e-12)
