import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from apportion.compressors.activations import ActivationGrid, TokenGrid
from apportion.compressors.calibration import over
from apportion.compressors.errors import (
    ConfigurationError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseMismatchError,
    LayerError,
    OutputError,
)
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import expand_levels, parse_level
from apportion.compressors.obs import compress_layer
from apportion.compressors.options import CompressionOptions
from apportion.db.files import save_tensors
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.search.jobs.job_file import load_model_job
from apportion.search.runs.building import build
from tests.conftest import LEVELS


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    return nn.Sequential(*layers).eval()


def make(
    path: Path,
    model: nn.Module | None = None,
    levels: tuple[str, ...] = ("dense", "unstr-0.50"),
    **options: Any,
) -> LayerDatabase:
    inputs = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    model = model or net()
    return build_database(
        path,
        model,
        find_layers(model, over(inputs)),
        over(inputs),
        expand_levels(levels),
        **{"model_fingerprint": "m", "calibration_fingerprint": "c", **options},
    )


class Stop(Exception):
    pass


def test_a_stopped_build_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    compressed: list[str] = []

    def stop(what: str, done: int, _total: int) -> None:
        compressed.append(what)
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        make(tmp_path / "stopped", progress=stop)
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    assert len(list((tmp_path / "stopped" / "layers").iterdir())) == 2
    first = sorted((tmp_path / "stopped" / "layers").iterdir())[0].stat().st_mtime_ns
    resumed = make(tmp_path / "stopped")
    assert sorted((tmp_path / "stopped" / "layers").iterdir())[0].stat().st_mtime_ns == first
    assert resumed.fingerprint == whole.fingerprint


def test_databases_of_equal_content_are_equal_byte_by_byte(tmp_path: Path) -> None:
    levels = ("dense", "unstr-0.50", "2:4", "w4a8")

    def hashes(name: str) -> dict[str, str]:
        make(tmp_path / name, levels=levels)
        return {
            str(file.relative_to(tmp_path / name)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted((tmp_path / name).rglob("*"))
            if file.is_file()
        }

    first = hashes("0")
    assert len(first) == 5
    for again in range(1, 7):  # with an order drawn anew for each file, one chance in 2^18
        assert hashes(str(again)) == first


def test_ordered_metadata_reads_back_whatever_its_letters(tmp_path: Path) -> None:
    metadata = {
        "record": 'büro 层 "\\\x01\x1f\x7f\n/\U0001f600',
        "build": "x",
        "a[b]": "",
        "\x00": "z",
    }
    tensors = {"läyer/values": torch.arange(5.0), "b": torch.zeros(3, 2, dtype=torch.uint8)}
    contents = set()
    for order in (metadata, dict(reversed(metadata.items()))):
        save_tensors(tensors, tmp_path / "f", order)
        contents.add((tmp_path / "f").read_bytes())
        with safe_open(tmp_path / "f", framework="pt") as opened:
            assert opened.metadata() == metadata
            assert all(torch.equal(opened.get_tensor(key), tensors[key]) for key in tensors)
    assert len(contents) == 1


def test_a_finished_build_is_opened(tmp_path: Path) -> None:
    first = make(tmp_path / "d")
    calls: list[str] = []
    again = make(tmp_path / "d", progress=lambda what, *_: calls.append(what))
    assert (again.fingerprint, calls) == (first.fingerprint, [])


def test_a_folder_of_another_build_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "d")
    with pytest.raises(DatabaseMismatchError, match="other levels"):
        make(tmp_path / "d", levels=("dense", "unstr-0.60"))
    with pytest.raises(DatabaseMismatchError, match="other model, calibration"):
        make(tmp_path / "d", model_fingerprint="x", calibration_fingerprint="y")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("hello")
    with pytest.raises(DatabaseError, match="holds other files"):
        make(tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_a_half_written_layer_file_is_made_again(tmp_path: Path) -> None:
    whole = make(tmp_path / "d")
    (tmp_path / "d" / "manifest.json").unlink()
    file = sorted((tmp_path / "d" / "layers").iterdir())[1]
    file.write_bytes(file.read_bytes()[:40])
    assert make(tmp_path / "d").fingerprint == whole.fingerprint


def test_dense_must_be_among_the_levels(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'dense' must be among the levels"):
        make(tmp_path / "d", levels=("unstr-0.50",))


def test_values_that_are_not_finite_name_the_layer(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(LayerError, match="layer '[25]'"):
        make(tmp_path / "d", model)
    bad = over(torch.full((4, 1, 4, 4), float("inf")))
    with pytest.raises(LayerError, match="layer '0': its Hessian is not finite"):
        build_database(
            tmp_path / "e",
            net(),
            find_layers(net(), bad),
            bad,
            expand_levels(["dense"]),
            model_fingerprint="m",
            calibration_fingerprint="c",
        )


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        make(tmp_path / "file" / "d")


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apportion.db.layers import records

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "save_tensors", full)
    with pytest.raises(OutputError, match="No space left"):
        make(tmp_path / "d")
    assert [p.name for p in (tmp_path / "d").rglob("*") if p.is_file()] == ["build.json"]


_SMALL_FILES = """
import resource, sys
from apportion.search.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
sys.exit(main(["build", sys.argv[1]]))
"""


def test_a_build_that_met_a_full_disk_goes_on_when_there_is_room(
    tmp_path: Path, job_file: Callable[..., Path], database: LayerDatabase
) -> None:
    job = job_file(database={"path": str(tmp_path / "d"), "levels": LEVELS})
    full = subprocess.run(
        [sys.executable, "-c", _SMALL_FILES, str(job)], capture_output=True, text=True, check=False
    )
    assert full.returncode == 1
    assert "cannot write" in full.stderr
    assert "Traceback" not in full.stderr
    left = {p.name for p in (tmp_path / "d").rglob("*") if p.is_file()}
    assert not [name for name in left if name.startswith(".")]
    assert "manifest.json" not in left
    assert build(load_model_job(job))[1].fingerprint == database.fingerprint


def test_a_second_build_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    def meanwhile(*_: object) -> None:
        with pytest.raises(DatabaseBusyError, match="another process is building"):
            make(tmp_path / "d")

    make(tmp_path / "d", progress=meanwhile)


def test_kill_9_in_the_middle(tmp_path: Path, job_file: Callable[..., Path]) -> None:
    levels = ["dense", "unstr-0.10..0.99*0.8"]
    job = job_file(database={"path": str(tmp_path / "d"), "levels": levels})
    command = [sys.executable, "-m", "apportion", "build", str(job)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "d" / "layers").glob("0*"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "d" / "manifest.json").exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    other = job_file(database={"path": str(tmp_path / "whole"), "levels": levels})
    subprocess.run(
        [*command[:-1], str(other)],
        check=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    fingerprints = [
        json.loads((tmp_path / d / "manifest.json").read_text())["fingerprint"]
        for d in ("d", "whole")
    ]
    assert fingerprints[0] == fingerprints[1]
    LayerDatabase.open(tmp_path / "d").verify()


def test_layers_may_want_other_levels(tmp_path: Path) -> None:
    exceptions = {"2": expand_levels(["dense", "w4"]), "5": expand_levels(["dense"])}
    database = make(tmp_path / "db", exceptions=exceptions)
    assert database.levels() == {"0": ["dense", "unstr-0.50"], "2": ["dense", "w4"], "5": ["dense"]}
    with pytest.raises(DatabaseMismatchError, match="other exceptions"):
        make(tmp_path / "db", exceptions={"2": expand_levels(["dense"])})


def test_grids_of_tokens_are_kept_where_layers_are_linear(tmp_path: Path) -> None:
    model = net()
    database = make(tmp_path / "db", model, ("dense", "rtn:w4a8", "rtn:w4a8-token"))
    kinds = {name: record.kind for name, record in database.layers.items()}
    assert {name: "rtn:w4a8-token" in own for name, own in database.levels().items()} == {
        name: kind == "linear" for name, kind in kinds.items()
    }
    again = LayerDatabase.open(tmp_path / "db")
    linear = next(name for name, kind in kinds.items() if kind == "linear")
    grid = again.entry(linear, "rtn:w4a8-token").activation
    assert grid == TokenGrid(8)
    weight, x = again.weight(linear, "rtn:w4a8-token"), torch.randn(2, 1, 4, 4)
    seen: list[torch.Tensor] = []
    model.get_submodule(linear).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    again.stitch(model, {n: parse_level("dense") for n in kinds})
    model(x)
    again.stitch(
        model,
        {n: parse_level("rtn:w4a8-token" if n == linear else "dense") for n in kinds},
    )
    bias = model.get_submodule(linear).bias
    expected = torch.nn.functional.linear(TokenGrid(8)(seen[0]), weight, bias)  # type: ignore[arg-type]
    assert torch.equal(model.get_submodule(linear)(seen[0]), expected)


def test_an_activation_grid_is_kept_and_stitched(tmp_path: Path) -> None:
    model = net()
    database = make(tmp_path / "db", model, ("dense", "w4", "w4a4", "a8", "2:4+w4a4"))
    assert database.levels()["0"] == ["dense", "w4", "w4a4", "a8"]  # 9 columns: no 2:4
    again = LayerDatabase.open(tmp_path / "db")
    grid = again.entry("2", "w4a4").activation
    assert isinstance(grid, ActivationGrid)
    assert (grid.bits, grid.zero) == (4, 0)  # behind a ReLU
    assert again.entry("2", "w4").activation is None
    assert torch.equal(again.weight("2", "w4a4"), again.weight("2", "w4"))
    x = torch.randn(2, 1, 4, 4)
    levels = {name: parse_level("dense") for name in ("0", "5")}
    database.stitch(model, {**levels, "2": parse_level("a8")})
    eight = database.entry("2", "a8").activation
    assert eight is not None
    with torch.no_grad():
        plain = net()
        expected = plain[3:](plain[2](eight(plain[:2](x))))
        assert torch.equal(model(x), expected)
        database.stitch(model, {**levels, "2": parse_level("dense")})
        assert torch.equal(model(x), plain(x))


def test_sequential_layers_see_what_reaches_them(tmp_path: Path) -> None:
    model = net()
    levels = ("dense", "unstr-0.75", "w2")
    independent = make(tmp_path / "independent", model, levels)
    sequential = make(
        tmp_path / "sequential", model, levels, options=CompressionOptions(sequential=True)
    )
    assert torch.equal(
        sequential.weight("0", "w2"), independent.weight("0", "w2")
    )  # nothing stands before it
    assert not torch.equal(sequential.weight("5", "w2"), independent.weight("5", "w2"))
    before = copy.deepcopy(model)
    with torch.no_grad():
        before.get_parameter("0.weight").copy_(sequential.weight("0", "w2"))
        before.get_parameter("2.weight").copy_(sequential.weight("2", "w2"))
    inputs = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    layer = find_layers(model, over(inputs)).layers[2]
    hessian = collect_hessians(before, [layer], over(inputs))["5"]
    (made,) = compress_layer(model.get_parameter("5.weight"), layer, hessian, expand_levels(["w2"]))
    assert torch.equal(made.weight, sequential.weight("5", "w2"))
    with pytest.raises(DatabaseMismatchError, match="other options"):
        make(tmp_path / "sequential", model, levels)


def test_a_stopped_sequential_build_goes_on(tmp_path: Path) -> None:
    options = CompressionOptions(sequential=True)
    whole = make(tmp_path / "whole", options=options)

    def stop(what: str, done: int, _total: int) -> None:
        if what == "compress" and done == 1:
            raise Stop

    with pytest.raises(Stop):
        make(tmp_path / "stopped", options=options, progress=stop)
    assert make(tmp_path / "stopped", options=options).fingerprint == whole.fingerprint
