"""``spikingjelly.activation_based.functional``."""

import torch
from torch import Tensor, nn

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.backends import check_backend
from snnfast.interop.spikingjelly.functions import *  # noqa: F403
from snnfast.interop.spikingjelly.stepping import (  # noqa: F401
    multi_step_forward,
    seq_to_ann_forward,
)


def set_step_mode(net: nn.Module, step_mode: str) -> None:
    """``step_mode`` of every module that has one, but for what stands in a container that calls its
    content once a timestep."""
    from snnfast.interop.spikingjelly.activation_based import layer

    keepers = (
        layer.StepModeContainer,
        layer.ElementWiseRecurrentContainer,
        layer.LinearRecurrentContainer,
    )
    kept = set()
    for module in net.modules():
        if isinstance(module, keepers):
            kept.update(m for m in module.modules() if not isinstance(m, keepers))
    for module in net.modules():
        if module not in kept and hasattr(module, "step_mode"):
            module.step_mode = step_mode


def set_backend(net: nn.Module, backend: str, instance=(nn.Module,)) -> None:
    """``backend`` of every ``instance`` that has one and knows that; all run on snnfast."""
    check_backend(backend)
    for module in net.modules():
        if isinstance(module, instance) and hasattr(module, "backend"):
            if backend in getattr(module, "supported_backends", (backend,)):
                module.backend = backend


def detach_net(net: nn.Module) -> None:
    """Call ``detach`` of every module that has one: gradients end at this timestep."""
    for module in net.modules():
        if callable(getattr(module, "detach", None)):
            module.detach()


def chunk_multi_step_forward(split_size: int, x_seq: Tensor, multi_step_module) -> Tensor:
    """``multi_step_module`` of x [T, ...], ``split_size`` timesteps a call."""
    return torch.cat([multi_step_module(x) for x in torch.split(x_seq, split_size)])


def delay(x_seq: Tensor, delay_steps: int) -> Tensor:
    """y_t = x_{t - delay_steps} of x [T, ...], and 0 before."""
    steps = x_seq.shape[0]
    return torch.cat([torch.zeros_like(x_seq[:delay_steps]), x_seq[: max(steps - delay_steps, 0)]])


__getattr__ = peer.names(__name__)
