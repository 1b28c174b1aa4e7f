import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from apportion.compressors.errors import (
    DatabaseCorruptError,
    DatabaseError,
    DatabaseMismatchError,
    DatabaseUnfinishedError,
    ModelError,
    ProfileError,
)
from apportion.compressors.levels import parse_level
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.workloads.workload import Workload, model_fingerprint


@pytest.fixture
def copy(database: LayerDatabase, tmp_path: Path) -> Path:
    return Path(shutil.copytree(database.path, tmp_path / "copy"))


def test_a_stitched_model_has_the_pattern_its_profile_promises(
    digits: Workload, database: LayerDatabase
) -> None:
    import copy as copying

    model = copying.deepcopy(digits.model)
    names = list(database.layers)
    profile = {
        name: parse_level("unstr-0.75" if i % 2 else "dense") for i, name in enumerate(names)
    }
    database.stitch(model, profile)
    dense = dict(digits.model.named_parameters())
    for i, name in enumerate(names):
        weight = dict(model.named_parameters())[f"{name}.weight"]
        if i % 2:
            assert int((weight == 0).sum()) >= 0.75 * weight.numel()
            assert torch.equal(weight, database.weight(name, "unstr-0.75"))
        else:
            assert torch.equal(weight, dense[f"{name}.weight"])


def test_every_entry_says_what_it_holds(database: LayerDatabase) -> None:
    database.verify()
    for name, record in database.layers.items():
        errors = [entry.normalized_error for entry in record.entries]
        assert errors[0] == 0
        assert errors == sorted(errors)
        for entry in record.entries[1:]:
            assert entry.nonzeros == int((database.weight(name, entry.level) != 0).sum())


def test_a_45_level_ladder_takes_at_most_35_percent_of_full_copies() -> None:
    from apportion.compressors.levels import expand_levels
    from apportion.db.layers import codec

    generator = torch.Generator().manual_seed(0)
    full = sparse = 0
    for level in expand_levels(["dense", "unstr-0.10..0.99"]):
        weight = torch.randn(64, 576, generator=generator)
        weight.view(-1)[
            torch.randperm(weight.numel(), generator=generator)[
                : int(level.fraction_removed * weight.numel())
            ]
        ] = 0
        sparse += codec.stored_bits(codec.encode(weight)[1])
        full += 32 * weight.numel()
    assert sparse <= 0.35 * full


def test_a_database_of_another_model_is_refused(database: LayerDatabase, digits: Workload) -> None:
    assert (
        LayerDatabase.open(database.path, model_fingerprint(digits.model)).levels()
        == database.levels()
    )
    with pytest.raises(DatabaseMismatchError, match="another model"):
        LayerDatabase.open(database.path, "0" * 64)


def test_a_truncated_file_is_found_when_opening(copy: Path) -> None:
    file = sorted((copy / "layers").iterdir())[2]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatabaseCorruptError, match=rf"{file.name} has \d+ bytes instead of \d+"):
        LayerDatabase.open(copy)


def test_an_altered_file_is_found_when_read(copy: Path) -> None:
    database = LayerDatabase.open(copy)
    name, file = list(database.layers)[2], sorted((copy / "layers").iterdir())[2]
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    opened = LayerDatabase.open(copy)
    with pytest.raises(DatabaseCorruptError, match=r"was altered \(checksum\)"):
        opened.verify()
    assert list(opened.layers)[2] == name


def test_missing_and_altered_files(copy: Path, tmp_path: Path) -> None:
    file = sorted((copy / "layers").iterdir())[0]
    file.unlink()
    with pytest.raises(DatabaseCorruptError, match=f"{file.name} is missing"):
        LayerDatabase.open(copy)
    manifest = copy / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["layers"][0]["record"]["macs"] += 1
    manifest.write_text(json.dumps(changed))
    with pytest.raises(DatabaseCorruptError, match=r"manifest.json was altered"):
        LayerDatabase.open(copy)
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(DatabaseCorruptError, match="cannot be read"):
        LayerDatabase.open(copy)
    manifest.unlink()
    with pytest.raises(DatabaseUnfinishedError, match="run `apportion build` again"):
        LayerDatabase.open(copy)
    (copy / "build.json").unlink()
    with pytest.raises(DatabaseError, match="not a layer database"):
        LayerDatabase.open(copy)
    with pytest.raises(DatabaseError, match="no such folder"):
        LayerDatabase.open(tmp_path / "nowhere")


def test_unknown_layers_and_levels(database: LayerDatabase, digits: Workload) -> None:
    with pytest.raises(DatabaseError, match="no layer 'layer9'"):
        database.weight("layer9", "dense")
    with pytest.raises(DatabaseError, match="layer 'conv1' has no level 'w4'"):
        database.weight("conv1", "w4")
    with pytest.raises(ProfileError, match="no level for layer"):
        database.stitch(digits.model, {"conv1": parse_level("dense")})
    profile = {name: parse_level("dense") for name in database.layers}
    with pytest.raises(ModelError, match="has no layer 'conv1'"):
        database.stitch(torch.nn.Linear(2, 2), profile)


def test_it_travels_to_other_processes_by_its_path(database: LayerDatabase) -> None:
    there = pickle.loads(pickle.dumps(database))
    assert torch.equal(there.weight("conv1", "unstr-0.50"), database.weight("conv1", "unstr-0.50"))
