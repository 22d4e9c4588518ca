"""What both namespaces have in ``functional``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reset_net(net: nn.Module) -> None:
    """Call ``reset`` of every module that has one."""
    for module in net.modules():
        if callable(getattr(module, "reset", None)):
            module.reset()


def kernel_dot_product(x: Tensor, y: Tensor, kernel: str = "linear", *args) -> Tensor:
    """[N, N] of x, y [N, M]: x y', (x y')^d, sigmoid(alpha x y'), or exp(-|x - y|^2 / (2 sigma^2)),
    for kernel "linear", "polynomial", "sigmoid", "gaussian"; ``args``: d, alpha or sigma."""
    product = x.mm(y.t())
    if kernel == "linear":
        return product
    if kernel == "polynomial":
        return product.pow(args[0])
    if kernel == "sigmoid":
        return torch.sigmoid(args[0] * product)
    if kernel == "gaussian":
        distance = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * product
        return torch.exp(-distance / (2 * args[0] ** 2))
    known = "linear, polynomial, sigmoid, gaussian"
    raise ValueError(f"kernel_dot_product: kernel must be one of {known}, got {kernel!r}")


def spike_similar_loss(
    spikes: Tensor, labels: Tensor, kernel_type: str = "linear", loss_type: str = "mse", *args
) -> Tensor:
    """How far the similarity of spikes [N, ...] is from that of one-hot labels [N, classes]."""
    losses = {"mse": F.mse_loss, "l1": F.l1_loss, "bce": F.binary_cross_entropy}
    if loss_type not in losses:
        known = ", ".join(losses)
        raise ValueError(f"spike_similar_loss: loss_type must be one of {known}, got {loss_type!r}")
    spikes, labels = spikes.flatten(1), labels.float()
    similarity = kernel_dot_product(spikes, spikes, kernel_type, *args)
    if kernel_type == "linear":
        length = spikes.norm(p=2, dim=1, keepdim=True)
        similarity = similarity / (length.mm(length.t()) + 1e-8)
    return losses[loss_type](similarity, labels.mm(labels.t()).clamp_max(1))


def set_threshold_margin(
    output_layer: nn.Module,
    label_one_hot: Tensor,
    eval_threshold: float = 1.0,
    threshold0: float = 0.9,
    threshold1: float = 1.1,
) -> None:
    """In training a threshold of its own for the neuron of the right class."""
    if output_layer.training:
        lower = torch.full_like(label_one_hot, threshold0, dtype=torch.get_default_dtype())
        output_layer.v_threshold = lower.masked_fill(label_one_hot == 1, threshold1)
    else:
        output_layer.v_threshold = eval_threshold


def redundant_one_hot(labels: Tensor, num_classes: int, n: int) -> Tensor:
    """[N, num_classes n]: n ones for each label."""
    return F.one_hot(labels, num_classes).repeat_interleave(n, dim=1).float()


def first_spike_index(spikes: Tensor) -> Tensor:
    """True at the first spike along the last axis."""
    with torch.no_grad():
        return spikes.cumsum(dim=-1).cumsum(dim=-1) == 1


def temporal_efficient_training_cross_entropy(x_seq: Tensor, target: Tensor) -> Tensor:
    """The mean over time of the cross-entropy of x [T, N, C, ...] (Deng et al. 2022, arXiv
    2202.11946)."""
    target = target.expand(x_seq.shape[0], *target.shape).flatten(0, 1)
    if x_seq.dim() > 3 and target.dim() == 1:
        target = target.view(-1, *[1] * (x_seq.dim() - 3)).expand(-1, *x_seq.shape[3:])
    return F.cross_entropy(x_seq.flatten(0, 1), target)


def kaiming_normal_conv_linear_weight(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, a=math.sqrt(5))


def _std(bn2d: nn.BatchNorm2d) -> Tensor:
    return (bn2d.running_var + bn2d.eps).sqrt()


def _refuse_bias(conv2d: nn.Conv2d) -> None:
    if conv2d.bias is not None:
        raise ValueError("fuse_convbn2d: bias of the convolution must be None, got a tensor")


def fused_conv2d_weight_of_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d) -> Tensor:
    _refuse_bias(conv2d)
    each = (-1, 1, 1, 1)
    return conv2d.weight * bn2d.weight.view(each) / _std(bn2d).view(each)


def fused_conv2d_bias_of_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d) -> Tensor:
    _refuse_bias(conv2d)
    return bn2d.bias - bn2d.running_mean * bn2d.weight / _std(bn2d)


@torch.no_grad()
def scale_fused_conv2d_weight_of_convbn2d(conv2d, bn2d, k=None, b=None) -> None:
    """The fused weight times k, plus b."""
    _refuse_bias(conv2d)
    if k is not None:
        conv2d.weight.mul_(k)
    if b is not None:
        conv2d.weight.add_(b)


@torch.no_grad()
def scale_fused_conv2d_bias_of_convbn2d(conv2d, bn2d, k=None, b=None) -> None:
    """The fused bias times k, plus b."""
    _refuse_bias(conv2d)
    if k is not None:
        bn2d.bias.mul_(k)
        bn2d.running_mean.mul_(k)
    if b is not None:
        bn2d.bias.add_(b)


@torch.no_grad()
def fuse_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d, k=None, b=None) -> nn.Conv2d:
    """One convolution in place of two modules, as they are in evaluation."""
    fused = nn.Conv2d(
        conv2d.in_channels, conv2d.out_channels, conv2d.kernel_size, conv2d.stride,
        conv2d.padding, conv2d.dilation, conv2d.groups, True, conv2d.padding_mode,
    )  # fmt: skip
    fused.weight.data = fused_conv2d_weight_of_convbn2d(conv2d, bn2d)
    fused.bias.data = fused_conv2d_bias_of_convbn2d(conv2d, bn2d)
    return fused
