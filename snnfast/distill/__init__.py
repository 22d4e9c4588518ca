"""Distillation criteria, and what they are judged by: accuracy over the full range of timesteps."""

from snnfast.distill.anytime import anytime, full_range
from snnfast.distill.criteria import TSER, TSSD, TWKD
from snnfast.ops.distill import mean_cross_entropy, temporal_cross_entropy

__all__ = [
    "TSER",
    "TSSD",
    "TWKD",
    "anytime",
    "full_range",
    "mean_cross_entropy",
    "temporal_cross_entropy",
]
