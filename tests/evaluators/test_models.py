"""Models: the CIFAR ResNets' structure, and every way in which a model by name or its weights can
be wrong."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.nn import functional as F

from apportion.compressors.errors import ModelError
from apportion.evaluators.models.build import build_model, load_weights
from apportion.evaluators.models.networks import CifarResNet


@pytest.mark.parametrize(
    (
        "name",
        "layers",
        "parameters",
    ),  # He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 million parameters
    [
        ("cifar_resnet20", 20, 269722),
        ("cifar_resnet32", 32, 464154),
        ("cifar_resnet44", 44, 658586),
        ("cifar_resnet56", 56, 853018),
        ("digits_resnet", 14, None),
    ],
)
def test_depth_and_size_are_the_papers(name: str, layers: int, parameters: int | None) -> None:
    model = build_model(name)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == layers
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters
    assert not model.training


def test_the_shortcut_is_option_a() -> None:
    """Without its residual branch a block leaves every second pixel, with zero channels on both
    sides."""
    block = CifarResNet(1).layer2[0].eval()
    nn.init.zeros_(dict(block.named_parameters())["bn2.weight"])
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    with torch.no_grad():
        assert torch.equal(block(x), expected)


def test_the_cifar_resnets_can_be_traced() -> None:
    model = build_model("cifar_resnet20")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_the_shared_file_fits_strictly(shared_data: Path) -> None:
    path = shared_data / "models" / "resnet20_cifar10.safetensors"
    model = build_model("cifar_resnet20")
    load_weights(model, path)
    stored = load_file(path)
    assert {key for key in model.state_dict() if not key.endswith("num_batches_tracked")} <= set(
        stored
    )
    assert all(torch.equal(model.state_dict()[key], value) for key, value in stored.items())


def test_only_batch_counters_may_be_absent(tmp_path: Path) -> None:
    state = {
        k: v
        for k, v in build_model("cifar_resnet20").state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    save_file(state, tmp_path / "w.safetensors")
    model = build_model("cifar_resnet20", str(tmp_path / "w.safetensors"))
    assert torch.equal(model.state_dict()["linear.weight"], state["linear.weight"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('broken')", r"cannot be imported \(RuntimeError: broken\)"),
        ("import os; os.no_such_thing", r"cannot be imported \(AttributeError: "),
        ("def net(:", r"cannot be imported \(SyntaxError: "),
        ("def net():\n    raise KeyError('depth')", r"calling 'net' failed \(KeyError: 'depth'\)"),
        ("net = 3", "'net' is not callable"),
        ("other = 3", "has no 'net'"),
    ],
)
def test_user_code_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    module = tmp_path.name  # one name a case: imported modules stay imported
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=message):
        build_model(f"{module}:net")


@pytest.mark.parametrize("name", [":net", ".package:net"])
def test_module_names_that_are_none(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be imported"):
        build_model(name)


def test_torchvision_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(
        ModelError,
        match=r"torchvision:resnet18': cannot be built with weights DEFAULT .*no network",
    ):
        build_model("torchvision:resnet18", "DEFAULT")


def test_a_truncated_weights_file(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pt"):
        path = tmp_path / name
        state = build_model("cifar_resnet20").state_dict()
        if path.suffix == ".pt":
            torch.save(state, path)
        else:
            save_file(state, path)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ModelError, match=f"{name}: not readable"):
            build_model("cifar_resnet20", str(path))


def test_a_checkpoint_without_a_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        build_model("cifar_resnet20", str(tmp_path / "list.pt"))


def test_forward_is_the_papers_network(shared_data: Path) -> None:
    """The same numbers as a plain re-statement of the network from the state dict alone."""
    state = load_file(shared_data / "models" / "resnet20_cifar10.safetensors")
    model = build_model("cifar_resnet20")
    load_weights(model, shared_data / "models" / "resnet20_cifar10.safetensors")
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x), _plain(state, x), rtol=1e-4, atol=1e-4)


def _plain(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def conv_bn(x: Tensor, conv: str, bn: str, stride: int) -> Tensor:
        y = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        statistics = (state[f"{bn}.running_mean"], state[f"{bn}.running_var"])
        return F.batch_norm(y, *statistics, state[f"{bn}.weight"], state[f"{bn}.bias"])

    x = conv_bn(x, "conv1", "bn1", 1).relu()
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = conv_bn(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
            y = conv_bn(y, f"{at}.conv2", f"{at}.bn2", 1)
            extra = (y.shape[1] - x.shape[1]) // 2
            x = (F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra, extra)) + y).relu()
    return F.adaptive_avg_pool2d(x, 1).flatten(1) @ state["linear.weight"].T + state["linear.bias"]
