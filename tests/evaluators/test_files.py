"""Files by URL: fetched once, again when they change, and an error that names them where they
cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from apportion.compressors.errors import DataError
from apportion.evaluators.data.config import NpzData
from apportion.evaluators.data.files import local_file
from apportion.evaluators.data.load import load_splits
from apportion.search.jobs.job_file import parse_job


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server on the folder tmp_path/site."""
    (tmp_path / "site").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert local_file(tmp_path / "x") == tmp_path / "x"
    assert local_file("a/b.npz") == Path("a/b.npz")


def test_images_by_url(site: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "site" / "a.npz",
        images=rng.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8),
        labels=np.arange(4),
    )
    data = {"kind": "npz", "calibration": f"{site}/a.npz", "test": f"{site}/a.npz"}
    job = parse_job(
        {"workload": {"model": "cifar_resnet20", "data": data}, "database": {"path": "d"}},
        tmp_path / "job.yaml",
    )
    config = job.workload.data  # type: ignore[union-attr]
    assert isinstance(config, NpzData)
    assert config.calibration == f"{site}/a.npz"  # not made a path
    assert len(load_splits(config).calibration) == 4
    (tmp_path / "site" / "a.npz").unlink()
    assert len(load_splits(config).test) == 4  # from the cache


def test_what_changes_is_fetched_again(tmp_path: Path) -> None:
    source = tmp_path / "w.bin"
    source.write_bytes(b"one")
    first = local_file(f"file://{source}")
    assert first.read_bytes() == b"one"
    assert first != source
    assert local_file(f"file://{source}") == first
    source.write_bytes(b"other")
    assert local_file(f"file://{source}").read_bytes() == b"other"


@pytest.mark.parametrize("name", ["no.npz", "../no.npz"])
def test_what_cannot_be_fetched_is_named(site: str, name: str) -> None:
    with pytest.raises(DataError, match="cannot be fetched") as caught:
        local_file(f"{site}/{name}")
    assert name in str(caught.value)
    with pytest.raises(DataError, match="nosuch"):
        local_file("nosuch://x/y")
