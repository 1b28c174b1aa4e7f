"""Image classifiers of Hugging Face: from the hub, or from a folder that `save_pretrained`
wrote."""

from __future__ import annotations

from torch import Tensor, nn

from apportion.compressors.errors import ModelError

PREFIX = "huggingface:"


class Logits(nn.Module):
    """The classifier's logits [N, classes] for pixel values [N, C, H, W]."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pixel_values=pixel_values).logits
        return logits

    def class_names(self) -> list[str] | None:
        """The names of the logits, in their order."""
        labels = getattr(self.classifier.config, "id2label", None)
        return [labels[index] for index in sorted(labels)] if labels else None


def load(name: str) -> nn.Module:
    """The model `name`, an id on the hub or a folder, with its weights. Those must be safetensors;
    code from the hub is never run. Raises ModelError."""
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ModelError(
            f"model '{PREFIX}{name}' needs the package transformers: install apportion[huggingface]"
        ) from error
    try:
        found = AutoModelForImageClassification.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # not there, no network, not a classifier, weights of another shape
        raise ModelError(
            f"model '{PREFIX}{name}': no image classifier with safetensors ({error})"
        ) from error
    return Logits(found.float())  # some are stored in half precision
