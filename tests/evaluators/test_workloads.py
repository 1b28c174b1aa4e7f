from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from apportion.compressors.calibration import over
from apportion.compressors.errors import DataError, ModelError, UnknownNameError, WeightsError
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.data.dataset import draw
from apportion.evaluators.models.build import build_model
from apportion.evaluators.models.registry import register_model
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import (
    Workload,
    data_fingerprint,
    load_workload,
    model_fingerprint,
)


def npz(path: Path, **arrays: Any) -> str:
    """An archive of 40 images, sorted by class; arrays replace it, None leaves one out."""
    labels = np.arange(40) // 4
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    content = {"images": images, "labels": labels, **arrays}
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return str(path)


def load(
    tmp_path: Path, calibration: str | None = None, model: str = "cifar_resnet20", **changes: Any
) -> Workload:
    good = npz(tmp_path / "good.npz")
    data = {"kind": "npz", "calibration": calibration or good, "test": good}
    return load_workload(WorkloadConfig.model_validate({"model": model, "data": data, **changes}))


def test_calibration_is_a_seeded_random_subset(tmp_path: Path) -> None:
    first, second = load(tmp_path, calibration_samples=20), load(tmp_path, calibration_samples=10)
    assert torch.equal(first.calibration.batch[0][:10], second.calibration.batch[0])  # nested
    assert (
        len(set(second.calibration.batch[1].tolist())) > 3
    )  # the file is sorted by class: its first ten hold three
    other = load(tmp_path, calibration_samples=20, seed=1)
    assert data_fingerprint(first.calibration) != data_fingerprint(other.calibration)
    assert data_fingerprint(first.calibration) == data_fingerprint(
        load(tmp_path, calibration_samples=20).calibration
    )


def test_images_are_scaled_and_normalised(tmp_path: Path) -> None:
    workload = load(
        tmp_path,
        data={
            "kind": "npz",
            "calibration": npz(tmp_path / "a.npz"),
            "test": npz(tmp_path / "b.npz"),
        },
    )
    with np.load(tmp_path / "b.npz") as archive:
        expected = (archive["images"][3, 5, 7] / 255 - [0.485, 0.456, 0.406]) / [
            0.229,
            0.224,
            0.225,
        ]
    inputs, labels = next(workload.test.batches(40))
    assert inputs[3, :, 5, 7].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert labels[3] == 0
    assert [len(y) for _, y in workload.test.batches(16)] == [16, 16, 8]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((40, 32, 32, 3), np.float32)}, "images must be uint8"),
        ({"images": np.zeros((40, 3, 32, 32), np.uint8)}, r"images must be uint8 \[N, H, W, 3\]"),
        ({"images": np.zeros((40, 96), np.uint8)}, "images must be uint8"),
        ({"labels": np.zeros((40, 2), np.int64)}, r"labels must be integers \[N\]"),
        ({"labels": np.zeros(40)}, "labels must be integers"),
        ({"labels": np.zeros(39, np.int64)}, "40 images and 39 labels"),
        ({"labels": None}, "no array 'labels'"),
        (
            {"labels": np.full(40, 10)},
            r"labels must lie in 0..9 for model 'cifar_resnet20'; the highest is 10",
        ),
        ({"images": np.zeros((40, 32, 32), np.uint8)}, "images of 1 channels with 3 means"),
        ({"labels": np.array([{}] * 40)}, "not readable"),
    ],
)
def test_calibration_data_of_the_wrong_shape(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, npz(tmp_path / "bad.npz", **arrays))


def test_inputs_that_do_not_run_through_the_model(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"inputs of shape \[3, 32, 32\] do not run through model 'digits_resnet'"
    ):
        load(tmp_path, model="digits_resnet")


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.npz: no such file"):
        load(tmp_path, str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="not readable as a .npz archive"):
        load(tmp_path, str(tmp_path / "text.npz"))
    truncated = Path(npz(tmp_path / "cut.npz"))
    truncated.write_bytes(truncated.read_bytes()[:2000])
    with pytest.raises(DataError, match="not readable as a .npz archive"):
        load(tmp_path, str(truncated))


def test_more_calibration_images_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="41 samples are asked for, the calibration data has 40"):
        load(tmp_path, calibration_samples=41)


def test_unknown_models_name_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown model 'cifar_resnet21'; did you mean 'cifar_resnet"
    ):
        build_model("cifar_resnet21")
    with pytest.raises(
        UnknownNameError, match="unknown torchvision model 'resnet51'; did you mean 'resnet5"
    ):
        build_model("torchvision:resnet51")
    with pytest.raises(UnknownNameError, match="unknown weights 'IMAGENET1K_V3'"):
        build_model("torchvision:resnet18", "IMAGENET1K_V3")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package:net", "cannot be imported"),
        ("torch.nn:NoSuchThing", "has no 'NoSuchThing'"),
        ("torch:pi", "is not callable"),
        ("torch.nn:Linear", "callable without arguments"),
        ("builtins:dict", "instead of a torch.nn.Module"),
    ],
)
def test_callables_that_are_no_models(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(name)


def test_a_users_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apportion.evaluators.models import build as models

    monkeypatch.setitem(models.MODELS, "mine", nn.Module)  # so that it goes again
    register_model("mine")(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    assert load(tmp_path, model="mine").calibration.batch[1].max() == 9
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Linear(4, 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(build_model("my_nets:net"), nn.Linear)


def test_weights_that_do_not_fit_say_which_keys(tmp_path: Path) -> None:
    state = build_model("cifar_resnet20").state_dict()
    del state["conv1.weight"]
    state["extra"] = torch.zeros(1)
    state["linear.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_model("cifar_resnet20", str(tmp_path / "w.safetensors"))
    assert caught.value.missing == ["conv1.weight"]
    assert caught.value.unexpected == ["extra"]
    assert caught.value.mismatched == ["linear.bias [7] instead of [10]"]
    assert "missing: conv1.weight; unexpected: extra; of another shape: linear.bias" in str(
        caught.value
    )


def test_weights_with_nan_name_the_tensor(tmp_path: Path) -> None:
    state = build_model("cifar_resnet20").state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="tensor 'layer1.0.conv1.weight' holds NaN"):
        build_model("cifar_resnet20", str(tmp_path / "w.safetensors"))


def test_weight_files_of_all_kinds(tmp_path: Path) -> None:
    state = build_model("cifar_resnet20").state_dict()
    expected = model_fingerprint(_with(state))
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pt", "w.pth"):
        assert model_fingerprint(build_model("cifar_resnet20", str(tmp_path / name))) == expected
    torch.save(nn.Linear(2, 2), tmp_path / "code.pt")  # a pickled module would run code
    with pytest.raises(ModelError, match="weights_only=True"):
        build_model("cifar_resnet20", str(tmp_path / "code.pt"))
    with pytest.raises(ModelError, match="no such file"):
        build_model("cifar_resnet20", str(tmp_path / "none.pt"))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ModelError, match="not readable as safetensors"):
        build_model("cifar_resnet20", str(tmp_path / "text.safetensors"))


def test_image_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
                tmp_path / "images" / label / f"{i}.png"
            )
    folder = str(tmp_path / "images")
    data = {"kind": "imagefolder", "calibration": folder, "test": folder, "resize": 36, "size": 32}
    workload = load_workload(
        WorkloadConfig.model_validate(
            {"model": "cifar_resnet20", "data": data, "calibration_samples": 6}
        )
    )
    assert workload.calibration.batch[0].shape == (6, 3, 32, 32)
    assert [y.tolist() for _, y in workload.test.batches(5)] == [[0, 0, 0, 0, 1], [1, 1, 1]]
    with pytest.raises(DataError, match="one folder of images per class"):
        load_workload(
            WorkloadConfig.model_validate(
                {"model": "cifar_resnet20", "data": {**data, "test": str(tmp_path / "x")}}
            )
        )


def test_cifar10_where_there_is_none(tmp_path: Path) -> None:
    data = {"kind": "cifar10", "root": str(tmp_path)}
    with pytest.raises(DataError, match="torchvision finds no CIFAR-10 there"):
        load_workload(WorkloadConfig.model_validate({"model": "cifar_resnet20", "data": data}))


def test_fingerprints_see_every_change() -> None:
    model = _with(build_model("cifar_resnet20").state_dict())
    before = model_fingerprint(model)
    with torch.no_grad():
        model.bn1.running_mean[0] += 1e-3  # type: ignore[union-attr, operator, index]
    assert model_fingerprint(model) != before


def test_the_digits_network_is_good_and_cached(digits: Workload, own_cache: Path) -> None:
    with torch.no_grad():
        right = [digits.model(x).argmax(1) == y for x, y in digits.test.batches(512)]
    assert torch.cat(right).double().mean() > 0.97
    file = own_cache / "apportion" / "digits_resnet-1.safetensors"
    assert file.is_file()
    config = WorkloadConfig.model_validate({"data": {"kind": "digits"}})
    calls: list[str] = []
    again = load_workload(config, lambda what, *_: calls.append(what))
    assert calls == []
    assert model_fingerprint(again.model) == model_fingerprint(digits.model)


def test_training_the_digits_network_twice_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from apportion.evaluators.data import digits

    monkeypatch.setattr(digits, "_EPOCHS", 2)
    models = [build_model("digits_resnet") for _ in range(2)]
    for model in models:
        digits.train(model)
    assert model_fingerprint(models[0]) == model_fingerprint(models[1])


def test_digits_splits_do_not_overlap() -> None:
    from apportion.evaluators.data.digits import digits_splits

    splits = digits_splits()
    calibration, test = (
        draw(s, len(s), np.random.default_rng(0)) for s in (splits.calibration, splits.test)
    )
    assert len(calibration) + len(test) == 1797


def test_folded_batchnorm_changes_no_output(digits: Workload) -> None:
    folded = load_workload(
        WorkloadConfig.model_validate({"data": {"kind": "digits"}, "fold": True})
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.model.modules())
    inputs = next(iter(digits.test.batches(64)))[0]
    with torch.no_grad():
        torch.testing.assert_close(folded.model(inputs), digits.model(inputs), rtol=1e-4, atol=1e-4)
    names, others = (
        [layer.name for layer in find_layers(model, over(inputs)).layers]
        for model in (digits.model, folded.model)
    )
    assert others == names
    assert model_fingerprint(folded.model) != model_fingerprint(digits.model)


def test_a_model_that_cannot_be_folded_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "untraceable.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        return x "
        "if x.sum() > 0 else -x\n"
        "def net(): return nn.Sequential(Net(), nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ModelError,
        match="'untraceable:net': workload.fold cannot be done: torch.fx cannot trace it",
    ):
        load_workload(
            WorkloadConfig.model_validate(
                {"model": "untraceable:net", "data": {"kind": "digits"}, "fold": True}
            )
        )


def test_the_shared_resnet20_is_as_good_as_published(shared_data: Path) -> None:
    cifar = shared_data / "cifar10"
    data = {
        "kind": "npz",
        "calibration": str(cifar / "calib1024.npz"),
        "test": str(cifar / "test5000.npz"),
    }
    weights = str(shared_data / "models" / "resnet20_cifar10.safetensors")
    config = WorkloadConfig.model_validate(
        {"model": "cifar_resnet20", "weights": weights, "data": data}
    )
    workload = load_workload(config)
    assert evaluate(workload, workload.model) == pytest.approx(88.76, abs=0.021)


def _with(state: dict[str, torch.Tensor]) -> nn.Module:
    model = build_model("cifar_resnet20")
    model.load_state_dict(state)
    return model
