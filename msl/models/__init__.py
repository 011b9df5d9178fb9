"""The networks this package can cut into stages."""

from msl.models.resnet import ResNet, resnet18, resnet34, resnet50

__all__ = ["ResNet", "resnet18", "resnet34", "resnet50"]
