"""The project's own networks, one family a file; each registers its names as it is imported."""

from apportion.evaluators.models.networks import darknet, mobilenet_v1, resnet_caffe
from apportion.evaluators.models.networks.cifar_resnet import CifarResNet

__all__ = ["CifarResNet", "darknet", "mobilenet_v1", "resnet_caffe"]
