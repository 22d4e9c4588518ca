"""snnfast: fast training and inference of deep spiking neural networks in PyTorch."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snnfast import data, distill, interop, models, monitoring, neurons, nn, surrogate
    from snnfast._info import info
    from snnfast.interop.accelerate import accelerate
    from snnfast.monitoring.monitor import monitor
    from snnfast.nn.streaming import streaming
    from snnfast.ops.distill import (
        mean_cross_entropy,
        temporal_cross_entropy,
        tser_loss,
        tssd_loss,
        twkd_loss,
    )
    from snnfast.ops.lif import lif
    from snnfast.ops.memory import keep_memory, keep_results
    from snnfast.ops.neuron import neuron
    from snnfast.ops.norm_lif import norm_lif
    from snnfast.ops.packed import packed_spikes
    from snnfast.ops.select import BackendUnavailable, backend, explain
    from snnfast.ops.spikes import pack_spikes, unpack_spikes
    from snnfast.ops.warm_up import warm_up
    from snnfast.reference.neuron import spike, ternary_spike
    from snnfast.train.load import load

__version__ = "0.2.0"
__all__ = [
    "BackendUnavailable",
    "__version__",
    "accelerate",
    "backend",
    "data",
    "distill",
    "explain",
    "info",
    "interop",
    "keep_memory",
    "keep_results",
    "lif",
    "load",
    "mean_cross_entropy",
    "models",
    "monitor",
    "monitoring",
    "neuron",
    "neurons",
    "nn",
    "norm_lif",
    "pack_spikes",
    "packed_spikes",
    "spike",
    "streaming",
    "surrogate",
    "temporal_cross_entropy",
    "ternary_spike",
    "tser_loss",
    "tssd_loss",
    "twkd_loss",
    "unpack_spikes",
    "warm_up",
]

# Imported at first use, so that `snnfast --help` need not wait for torch. None: a submodule.
_HOMES = {
    "BackendUnavailable": "snnfast.ops.select",
    "accelerate": "snnfast.interop.accelerate",
    "backend": "snnfast.ops.select",
    "data": None,
    "distill": None,
    "explain": "snnfast.ops.select",
    "info": "snnfast._info",
    "interop": None,
    "keep_memory": "snnfast.ops.memory",
    "keep_results": "snnfast.ops.memory",
    "lif": "snnfast.ops.lif",
    "load": "snnfast.train.load",
    "mean_cross_entropy": "snnfast.ops.distill",
    "models": None,
    "monitor": "snnfast.monitoring.monitor",
    "monitoring": None,
    "neuron": "snnfast.ops.neuron",
    "neurons": None,
    "nn": None,
    "norm_lif": "snnfast.ops.norm_lif",
    "pack_spikes": "snnfast.ops.spikes",
    "packed_spikes": "snnfast.ops.packed",
    "spike": "snnfast.reference.neuron",
    "streaming": "snnfast.nn.streaming",
    "surrogate": None,
    "temporal_cross_entropy": "snnfast.ops.distill",
    "ternary_spike": "snnfast.reference.neuron",
    "tser_loss": "snnfast.ops.distill",
    "tssd_loss": "snnfast.ops.distill",
    "twkd_loss": "snnfast.ops.distill",
    "unpack_spikes": "snnfast.ops.spikes",
    "warm_up": "snnfast.ops.warm_up",
}


if not TYPE_CHECKING:  # to a type checker it would say that every name is there

    def __getattr__(name: str):
        if name not in _HOMES:
            raise AttributeError(f"module 'snnfast' has no attribute {name!r}")
        home = _HOMES[name]
        if home is None:
            return importlib.import_module(f"snnfast.{name}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
