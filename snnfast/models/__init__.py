"""Spiking networks and their ANN teachers, by name: :func:`create_model`, :func:`list_models`."""

from snnfast.models import digits  # noqa: F401  (registers its models)
from snnfast.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
