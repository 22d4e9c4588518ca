"""``spikingjelly.clock_driven.monitor``."""

import torch
from torch import nn

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.clock_driven import neuron

__all__ = ["Monitor"]


class Monitor:
    """Firing rates of the nodes of ``net``, from ``enable`` (or ``reset``) to ``disable``.

    ``backend`` "numpy" or "torch" says what the numbers are; the latter are on ``device``."""

    def __init__(self, net: nn.Module, device=None, backend: str = "numpy"):
        if backend not in ("numpy", "torch"):
            raise ValueError(f"Monitor: backend must be numpy or torch, got {backend!r}")
        self.module_dict = {
            name: module
            for name, module in net.named_modules()
            if isinstance(module, neuron.BaseNode)
        }
        self.net = net
        self.backend = backend
        self.device = device

    def enable(self) -> None:
        self.handle = {}
        for name, module in self.module_dict.items():
            module.neuron_cnt = None
            self.handle[name] = module.register_forward_hook(self.forward_hook)
        self.reset()

    def disable(self) -> None:
        for name, module in self.module_dict.items():
            for attribute in ("neuron_cnt", "fire_mask", "firing_time", "cnt"):
                delattr(module, attribute)
            self.handle[name].remove()

    def reset(self) -> None:
        for module in self.module_dict.values():
            module.fire_mask, module.firing_time, module.cnt = False, 0, 0

    @torch.no_grad()
    def forward_hook(self, module, x, spikes) -> None:
        steps = type(module).__name__.startswith("MultiStep")
        spikes = spikes.flatten(0, 1) if steps else spikes
        if self.backend == "numpy":
            fired, times = (spikes != 0).any(0).cpu().numpy(), spikes.sum().cpu().numpy()
        else:
            spikes = spikes.to(self.device)
            fired, times = (spikes != 0).any(0), spikes.sum()
        module.neuron_cnt = spikes[0].numel()
        module.firing_time = module.firing_time + times
        module.cnt += spikes.numel()
        module.fire_mask = fired | module.fire_mask

    def get_avg_firing_rate(self, all: bool = True, module_name: "str | None" = None):
        """Spikes per neuron and timestep, of all nodes or of one."""
        modules = self._asked(all, module_name)
        return sum(m.firing_time for m in modules) / sum(m.cnt for m in modules)

    def get_nonfire_ratio(self, all: bool = True, module_name: "str | None" = None):
        """The share of neurons without a spike, of all nodes or of one."""
        modules = self._asked(all, module_name)
        return sum((~m.fire_mask).sum() for m in modules) / sum(m.neuron_cnt for m in modules)

    def _asked(self, all: bool, module_name) -> list:
        if all:
            return list(self.module_dict.values())
        if module_name not in self.module_dict:
            known = ", ".join(self.module_dict)
            raise ValueError(f"Monitor: module_name must be one of {known}, got {module_name!r}")
        return [self.module_dict[module_name]]


__getattr__ = peer.names(__name__)
