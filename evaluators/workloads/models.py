"""Models by name: the CIFAR ResNets, torchvision's, Hugging Face's, and any callable of the
user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from apportion.compressors.errors import CodeError, ModelError, UnknownNameError, WeightsError
from apportion.compressors.user_code import load_object
from apportion.evaluators.workloads import huggingface
from apportion.evaluators.workloads.files import local_file

_MODELS: dict[str, Callable[[], nn.Module]] = {}


def register_model(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a function without arguments that builds an nn.Module under `name`."""

    def keep(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        _MODELS[name] = build
        return build

    return keep


def build_model(name: str, weights: str | None = None) -> nn.Module:
    """The model called `name`, in eval mode on the CPU: a registered name, `torchvision:NAME`,
    `huggingface:NAME` (with its own weights), or `package.module:function`. `weights`: a file
    (.safetensors; .pt, .pth) or, for torchvision, the name of one of its weight enums. Raises
    UnknownNameError, ModelError, WeightsError."""
    if name in _MODELS:
        model = _MODELS[name]()
    elif name.startswith("torchvision:"):
        model = _torchvision(name.removeprefix("torchvision:"), weights)
        if weights is not None and not is_file_name(weights):
            return model.eval()
    elif name.startswith(huggingface.PREFIX):
        model = huggingface.load(name.removeprefix(huggingface.PREFIX))
    elif ":" in name:
        model = _call(name)
    else:
        valid = [
            *_MODELS,
            "torchvision:NAME",
            f"{huggingface.PREFIX}NAME",
            "package.module:function",
        ]
        raise UnknownNameError("model", name, valid)
    if weights is not None:
        load_weights(model, local_file(weights))
    _check_finite(model, name)
    return model.eval()


def is_file_name(weights: str) -> bool:
    """Files have a suffix or a folder; torchvision's weight enums (IMAGENET1K_V2, DEFAULT) have
    neither."""
    return "/" in weights or bool(Path(weights).suffix)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from .safetensors, or from .pt/.pth read with weights_only=True. Its keys
    and shapes must be the model's; batch counters (num_batches_tracked) may be absent. Raises
    WeightsError, ModelError."""
    state = _read_state(path)
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    mismatched = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or mismatched:
        raise WeightsError(str(path), missing, unexpected, mismatched)
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"weights file {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights file {path}: not readable as safetensors ({error})") from error
    except Exception as error:  # torch.load raises many kinds for a file that is not its own
        raise ModelError(
            f"weights file {path}: not readable with weights_only=True ({error})"
        ) from error
    for key in ("state_dict", "model"):  # common wrappings of checkpoints
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ModelError(f"weights file {path}: holds no state dict (name -> tensor)")
    return state


def _torchvision(name: str, weights: str | None) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models():
        raise UnknownNameError("torchvision model", name, torchvision.models.list_models())
    enum = None
    if weights is not None and not is_file_name(weights):
        choices = torchvision.models.get_model_weights(name)
        if weights != "DEFAULT" and weights not in choices.__members__:
            raise UnknownNameError(
                "weights", weights, ["DEFAULT", *choices.__members__], f"torchvision:{name}"
            )
        enum = weights
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=enum)
    except (OSError, RuntimeError) as error:  # no network; a download cut short (its hash is wrong)
        raise ModelError(
            f"model 'torchvision:{name}': cannot be built with weights {enum} ({error})"
        ) from error
    return model


def _call(name: str) -> nn.Module:
    attribute = name.partition(":")[2]
    try:
        function = load_object(name, "model")
    except CodeError as error:
        raise ModelError(str(error)) from error
    if not callable(function):
        raise ModelError(f"model {name!r}: {attribute!r} is not callable")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ModelError(f"model {name!r}: must be callable without arguments ({error})") from error
    except ValueError:
        pass  # a builtin that does not tell its signature: calling it will tell
    try:
        model = function()
    except Exception as error:  # the user's own code
        raise ModelError(
            f"model {name!r}: calling {attribute!r} failed ({_named(error)})"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {name!r}: gave a {type(model).__name__} instead of a torch.nn.Module"
        )
    return model


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _check_finite(model: nn.Module, name: str) -> None:
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"model {name!r}: tensor {key!r} holds NaN or infinity")


class _Block(nn.Module):
    """Two 3x3 convolutions around an identity shortcut that subsamples and zero-pads (He et al.
    2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self._stride, self._padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self._stride > 1 or self._padding:
            x = F.pad(
                x[:, :, :: self._stride, :: self._stride],
                (0, 0, 0, 0, self._padding, self._padding),
            )
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for small images (He et al. 2016, section 4.2): input [N, channels, H, W],
    output [N, classes]."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(blocks, widths[0], widths[0], 1)
        self.layer2 = self._stage(blocks, widths[0], widths[1], 2)
        self.layer3 = self._stage(blocks, widths[1], widths[2], 2)
        self.linear = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = _Block(inputs, outputs, stride)
        return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


@register_model("cifar_resnet20")
def cifar_resnet20() -> nn.Module:
    return CifarResNet(3)


@register_model("cifar_resnet32")
def cifar_resnet32() -> nn.Module:
    return CifarResNet(5)


@register_model("cifar_resnet44")
def cifar_resnet44() -> nn.Module:
    return CifarResNet(7)


@register_model("cifar_resnet56")
def cifar_resnet56() -> nn.Module:
    return CifarResNet(9)


@register_model("digits_resnet")
def digits_resnet() -> nn.Module:
    """A ResNet-14 for 8 x 8 gray images: 14 layers that can be compressed."""
    return CifarResNet(2, widths=(8, 16, 32), channels=1)


def folded(model: nn.Module, name: str) -> nn.Module:
    """`model` in eval mode with each batch-norm that follows a convolution folded into it. Raises
    ModelError for a model that torch.fx cannot trace."""
    try:
        made: nn.Module = fuse(model.eval())
    except Exception as error:  # whatever the model's own code raises when it is traced
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {name!r}: workload.fold needs a model that torch.fx can trace ({reason})"
        ) from error
    return made.eval()
