from pathlib import Path

import numpy as np
import pytest

from apportion.compressors.calibration import over
from apportion.compressors.errors import DataError
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import expand_levels
from apportion.db.layers.build import build_database
from apportion.evaluators.costs.latency_files import read_latency
from apportion.evaluators.costs.model import METRICS, cost_tables
from apportion.evaluators.workloads.workload import Workload, model_fingerprint


@pytest.fixture(scope="module")
def tables_of(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)
    ).eval()
    images = torch.randn(16, 3, 8, 8)
    levels = expand_levels(["dense", "unstr-0.50", "w4", "w8a8", "a4", "unstr-0.50+w4a8"])
    path = tmp_path_factory.mktemp("costs") / "db"
    data = over(images)
    database = build_database(
        path,
        model,
        find_layers(model, data),
        data,
        levels,
        model_fingerprint=model_fingerprint(model),
        calibration_fingerprint="c",
    )
    return model, database


def test_bit_operations(tables_of) -> None:  # type: ignore[no-untyped-def]
    model, database = tables_of
    tables = cost_tables(model, database)
    assert set(tables) == set(METRICS) - {"latency"}
    macs = 36 * 4 * 27
    density = [1, 0.5, 1, 1, 1, 0.5]
    weight, activation = [32, 32, 4, 8, 32, 4], [32, 32, 32, 8, 4, 8]
    expected = [macs * d * w * a for d, w, a in zip(density, weight, activation, strict=True)]
    assert tables["bops"].levels[0].tolist() == pytest.approx(expected)
    larger = [macs * d * max(w, a) for d, w, a in zip(density, weight, activation, strict=True)]
    assert tables["bops-linear"].levels[0].tolist() == pytest.approx(larger)
    assert tables["bops"].dense == pytest.approx((macs + 4 * 36 * 5) * 1024)


def test_latency_from_a_table(tables_of, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, database = tables_of
    path = tmp_path / "t.csv"
    rows = ["layer,level,seconds", "*,dense,1.0", "0,dense,0.5", "0,unstr-0.50,0.3", "0,w8a8,0.2"]
    path.write_text("\n".join([*rows, "2,dense,0.2", "other,dense,0.1"]))
    table = cost_tables(model, database, read_latency(path))["latency"]
    assert np.allclose(table.levels[0], [0.5, 0.3, 0.5, 0.2, 0.5, 0.5])
    assert np.allclose(table.levels[1], 0.2)
    assert (table.base, table.dense) == (pytest.approx(0.3), 1.0)
    path.write_text("\n".join(rows))
    with pytest.raises(DataError, match="has no layer '2'"):
        cost_tables(model, database, read_latency(path))


def test_the_digits_networks_own_levels(digits: Workload, database) -> None:  # type: ignore[no-untyped-def]
    for table in cost_tables(digits.model, database).values():
        assert all(
            (np.diff(row) <= 0).all() for row in table.levels
        )  # a ladder: every step is cheaper
        assert table.base >= 0
