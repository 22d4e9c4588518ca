"""Spiking networks and their ANN teachers, by name: :func:`create_model`, :func:`list_models`."""

from snnfast.models import (  # noqa: F401  (register their models)
    ann,
    digits,
    digits_resnet,
    residual,
    resnet,
    vgg,
)
from snnfast.models.layers import set_process_group
from snnfast.models.registry import create_model, exported_weights, is_ann, list_models

__all__ = ["create_model", "exported_weights", "is_ann", "list_models", "set_process_group"]
