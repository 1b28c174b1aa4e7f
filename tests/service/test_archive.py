"""What is uploaded is what was named: no more, no less, and checked where it arrives."""

from __future__ import annotations

import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from apportion.compressors.errors import ApportionError, ConfigurationError, JobError
from apportion.search.service import package
from apportion.search.service.archive import FILES, Archive, check, unpack
from apportion.search.service.package import pack
from tests.service.conftest import write_job


def images(folder: Path) -> Path:
    """A folder of forty files, of which a .gitignore names ten, and a class without any."""
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for i in range(20):
            (folder / kind / f"{i}{'_raw' if i % 2 else ''}.png").write_bytes(bytes([i]) * 100)
    (folder / "none").mkdir()
    (folder / ".gitignore").write_text("*_raw.png\nb/\n")
    (folder / ".rayignore").write_text("*\n")
    return folder


def packed(source: Path, target: Path) -> Path:
    archive = Archive(target)
    archive.add(source, source.name)
    (target / "job.json").write_text("{}")
    archive.close()
    return target


def sent(target: Path, to: Path) -> Path:
    """As Ray sends a folder: without what ignore files in it name."""
    ray = pytest.importorskip(
        "ray._private.runtime_env.packaging", reason="apportion[ray] is not installed"
    )
    ray._zip_files(target, [], str(to) + ".zip", include_gitignore=True)
    with zipfile.ZipFile(str(to) + ".zip") as opened:
        opened.extractall(to)
    return to


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_ignore_files_among_the_data_change_nothing(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copytree(data, plain / "data")
    assert len(listed(sent(plain, tmp_path / "rays"))) < len(
        listed(data)
    )  # else this tests nothing
    arrived = sent(packed(data, tmp_path / "package"), tmp_path / "arrived")
    unpack(arrived)
    check(arrived)
    assert listed(arrived / FILES / "data") == listed(data)
    for name in listed(data):
        if (data / name).is_file():
            assert (arrived / FILES / "data" / name).read_bytes() == (data / name).read_bytes()


def _drop(package: Path) -> None:
    (package / FILES / "data/a/1_raw.png").unlink()


def _change(package: Path) -> None:
    (package / FILES / "data/a/0.png").write_bytes(b"x" * 100)


def _shorten(package: Path) -> None:
    (package / FILES / "data/a/0.png").write_bytes(b"")


def _add(package: Path) -> None:
    (package / FILES / "data/a/more.png").write_bytes(b"x")


def _drop_job(package: Path) -> None:
    (package / "job.json").unlink()


def _drop_manifest(package: Path) -> None:
    (package / "files.json").unlink()


@pytest.mark.parametrize("harm", [_drop, _change, _shorten, _add, _drop_job, _drop_manifest])
def test_a_package_that_did_not_arrive_as_it_was_sent_is_refused(
    harm: Callable[[Path], None], tmp_path: Path
) -> None:
    package = packed(images(tmp_path / "data"), tmp_path / "package")
    unpack(package)
    check(package)
    harm(package)
    with pytest.raises(ConfigurationError, match="submit"):
        check(package)


def _loop(folder: Path) -> None:
    (folder / "a/loop").symlink_to(folder)


def _self(folder: Path) -> None:
    (folder / "self").symlink_to("self")


def _outside(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "a/link.png").symlink_to(folder.parent / "secret")


def _large(folder: Path) -> None:
    (folder / "large").symlink_to("/usr")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "a/pipe")


def _socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may not be long
    try:
        socket.socket(socket.AF_UNIX).bind("socket")
    finally:
        os.chdir(here)


def _dangling(folder: Path) -> None:
    (folder / "gone").symlink_to("nowhere")


@pytest.mark.parametrize("harm", [_loop, _self, _outside, _large, _pipe, _socket, _dangling])
def test_what_is_no_regular_file_of_the_folder_is_refused_by_name(
    harm: Callable[[Path], None], tmp_path: Path
) -> None:
    harm(images(tmp_path / "data"))
    with pytest.raises(JobError, match="workload.data.calibration") as raised:
        pack(_job(tmp_path, "data"), tmp_path / "out", upload=True)
    assert "regular file" in str(raised.value) or "is a link to" in str(raised.value)


def test_a_pipe_as_the_data_itself_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JobError, match="no regular file"):
        pack(_job(tmp_path, "pipe"), tmp_path / "out", upload=True)


def test_a_link_within_the_folder_and_the_folder_as_a_link_are_taken(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    (data / "a/again.png").symlink_to(data / "a/0.png")
    (tmp_path / "link").symlink_to(data)
    target = tmp_path / "out"
    pack(_job(tmp_path, "link"), target, upload=True)
    unpack(target)
    check(target)
    assert (target / FILES / "1-link/a/again.png").read_bytes() == (data / "a/0.png").read_bytes()
    assert not (target / FILES / "1-link/a/again.png").is_symlink()


def test_what_is_too_large_is_said_and_nothing_of_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images(tmp_path / "data")
    monkeypatch.setattr(package, "LIMIT", 1000)
    found = pack(_job(tmp_path, "data"), tmp_path / "out", upload=True)
    assert found.notes[0] == (
        f"workload.data.calibration: {data} is too large to upload (more than 0 MiB); the head "
        "node must have it"
    )
    assert not (tmp_path / "out/files.tar").exists()
    monkeypatch.setattr(package, "_ALL", 1000)
    with pytest.raises(ConfigurationError, match="Ray takes"):
        pack(_job(tmp_path, "data"), tmp_path / "out2", upload=True)


def _job(folder: Path, root: str) -> Path:
    data = {"kind": "imagefolder", "calibration": root, "test": str(folder / "test")}
    return write_job(folder, workload={"model": "digits_resnet", "data": data})


@pytest.mark.parametrize("harm", [_loop, _large, _pipe])
def test_a_module_of_the_users_own_is_looked_through_the_same_way(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "mine_and_odd"
    (module / "a").mkdir(parents=True)
    (module / "__init__.py").write_text("def net(): ...")
    (module / ".gitignore").write_text("*")
    monkeypatch.syspath_prepend(tmp_path)
    job = write_job(tmp_path, workload={"model": "mine_and_odd:net", "data": {"kind": "digits"}})
    pack(job, tmp_path / "out", upload=True)
    assert (tmp_path / "out/mine_and_odd/__init__.py").is_file()
    assert not (tmp_path / "out/mine_and_odd/.gitignore").exists()
    assert "mine_and_odd/__init__.py" in json.loads((tmp_path / "out/files.json").read_text())
    harm(module)
    with pytest.raises(ApportionError, match="regular file|is a link to"):
        pack(job, tmp_path / "out2", upload=True)
