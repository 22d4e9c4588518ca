"""The networks that the formats are shown on."""

import torch
from torch import nn

import snnfast
from snnfast.models.resnet import RESNET18, ResNet

T = 4


def dyadic(x: torch.Tensor, unit: float = 1 / 16) -> torch.Tensor:
    """Multiples of ``unit``, of which sums are exact in any order."""
    return (x / unit).round() * unit


@torch.no_grad()
def ready(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics as if it had been trained and weights that are exact."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                module.weight.uniform_(0.7, 1.4)
                module.bias.normal_(0.4, 0.3)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            fan = module.weight[0].numel()
            module.weight.copy_(dyadic(torch.randn_like(module.weight) * (2 / fan) ** 0.5, 2**-6))
            if module.bias is not None:
                module.bias.copy_(dyadic(module.bias))
    return model.eval()


def conv_net(*neurons: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """(a small network, its input); ``neurons``: those behind its two layers."""
    first, second = neurons or (
        snnfast.nn.BatchNormLIF(4, tau=1.7, v_reset=None),
        snnfast.nn.LIF(2.5, v_threshold=0.3),
    )
    model = nn.Sequential(
        snnfast.nn.OverTime(nn.Conv2d(2, 4, 3, padding=1)),
        first,
        snnfast.nn.OverTime(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 40)),
        second,
    )
    return ready(model), dyadic(2 * torch.randn(T, 3, 2, 6, 6))


def resnet() -> tuple[nn.Module, torch.Tensor]:
    """(ResNet-18, but for its width, a sequence)."""
    layout = RESNET18 | {"widths": (8, 8, 16, 16), "stem": 8}
    return ready(ResNet(layout, 10, 3, 16, T, None)), dyadic(torch.randn(T, 2, 3, 16, 16))


NETWORKS = {"conv": conv_net, "resnet18": resnet}


def stepped(run, inputs: tuple, rest: dict) -> list[torch.Tensor]:
    """Outputs [T, ...] of ``run(*inputs[t], *states) -> (*outputs, *states)`` from the states at
    rest."""
    states, made = list(rest.values()), []
    for now in zip(*inputs, strict=True):
        found = run(*now, *states)
        outputs, states = found[: -len(states)], found[-len(states) :]
        made.append(outputs)
    return [torch.stack(steps) for steps in zip(*made, strict=True)]
