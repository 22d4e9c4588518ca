"""Distillation criteria, and what they are judged by: accuracy over the full range of timesteps."""

from snnfast.distill.anytime import full_range
from snnfast.distill.twkd import TWKD

__all__ = ["TWKD", "full_range"]
