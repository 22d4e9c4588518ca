"""What passes timesteps to modules that know none, and the layers with a memory, for both
namespaces: a namespace adds its own ``MemoryModule``, and step modes where it has them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def multi_step_forward(x_seq: Tensor, single_step_module) -> Tensor:
    """One call of a module, a function or a list of modules for each timestep."""
    if isinstance(single_step_module, (list, tuple, nn.Sequential)):
        single_step_module = _chain(single_step_module)
    return torch.stack([single_step_module(x) for x in x_seq])


def seq_to_ann_forward(x_seq: Tensor, stateless_module) -> Tensor:
    """One call for all timesteps, as a batch [T N, ...], of a module, a function or a list."""
    if isinstance(stateless_module, (list, tuple, nn.Sequential)):
        stateless_module = _chain(stateless_module)
    y = stateless_module(x_seq.flatten(0, 1))
    return y.view(*x_seq.shape[:2], *y.shape[1:])


def _chain(modules):
    def run(x):
        for module in modules:
            x = module(x)
        return x

    return run


class ContainerKeys(nn.Sequential):
    """A container whose checkpoints may have the keys of the older form, too, which held its
    content as ``module``: ``module.weight`` of one module, ``module.0.weight`` of several."""

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        older = f"{prefix}module."
        newer = f"{prefix}0." if len(self) == 1 else prefix
        if "module" not in self._modules:
            for key in [key for key in state_dict if key.startswith(older)]:
                state_dict[newer + key.removeprefix(older)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def module_keys(net: nn.Module) -> dict[str, Tensor]:
    """``net.state_dict()`` with the keys of containers as before SpikingJelly 0.0.0.0.8,
    ``x.module.weight`` for ``x.0.weight``."""
    state = net.state_dict()
    # From the inside out: a container's prefix is not changed before it is looked at.
    for path, container in reversed(list(net.named_modules())):
        if isinstance(container, ContainerKeys):
            prefix = f"{path}." if path else ""
            newer = f"{prefix}0." if len(container) == 1 else prefix
            state = {
                f"{prefix}module.{key.removeprefix(newer)}" if key.startswith(newer) else key: value
                for key, value in state.items()
            }
    return state


class DropoutStep:
    """Dropout whose mask stays the same until ``reset``."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"{type(self).__name__}: p must be in [0, 1), got {p}")
        self.register_memory("mask", None)
        self.p = p

    def extra_repr(self):
        return f"p={self.p}"

    def create_mask(self, x: Tensor) -> None:
        self.mask = F.dropout(torch.ones_like(x.data), self.p, training=True)

    def single_step_forward(self, x: Tensor):
        return self._masked(x, x)

    def multi_step_forward(self, x_seq: Tensor):
        return self._masked(x_seq, x_seq[0])

    def _masked(self, x: Tensor, step: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.mask is None:
            self.create_mask(step)
        return x * self.mask


class Dropout2dStep(DropoutStep):
    def __init__(self, p: float = 0.2):
        super().__init__(p)

    def create_mask(self, x: Tensor) -> None:
        self.mask = F.dropout2d(torch.ones_like(x.data), self.p, training=True)


class NeuNormStep:
    """Takes a leaky sum over channels, times learned weights, from the spikes (Wu et al. 2019,
    arXiv 1809.05793)."""

    def __init__(self, in_channels, height, width, k=0.9, shared_across_channels=False):
        super().__init__()
        self.register_memory("x", 0.0)
        self.k0 = k
        self.k1 = (1.0 - k) / in_channels**2
        self.w = nn.Parameter(
            torch.empty(1 if shared_across_channels else in_channels, height, width)
        )
        nn.init.kaiming_uniform_(self.w, a=5**0.5)

    def extra_repr(self):
        return f"shape={self.w.shape}"

    def single_step_forward(self, in_spikes: Tensor):
        self.x = self.k0 * self.x + self.k1 * in_spikes.sum(dim=1, keepdim=True)
        return in_spikes - self.w * self.x


class SynapseFilterStep:
    """A current that each spike raises by one and that leaks where none comes."""

    def __init__(self, tau: float = 100.0, learnable: bool = False):
        super().__init__()
        if not tau > 1:
            raise ValueError(f"{type(self).__name__}: tau must be > 1, got {tau}")
        self.learnable = learnable
        if learnable:
            self.w = nn.Parameter(torch.as_tensor(-math.log(tau - 1.0)))
        else:
            self.tau = tau
        self.register_memory("out_i", 0.0)

    def extra_repr(self):
        tau = 1 / self.w.detach().sigmoid() if self.learnable else self.tau
        return f"tau={tau}, learnable={self.learnable}"

    def single_step_forward(self, x: Tensor):
        inv_tau = self.w.sigmoid() if self.learnable else 1.0 / self.tau
        self.out_i = self.out_i - (1.0 - x) * self.out_i * inv_tau + x
        return self.out_i


class ElementWiseRecurrentContainerStep:
    """y_t = sub_module(element_wise_function(y_{t-1}, x_t))."""

    def __init__(self, sub_module: nn.Module, element_wise_function):
        super().__init__()
        refuse_all_steps(self, sub_module)
        self.sub_module = sub_module
        self.element_wise_function = element_wise_function
        self.register_memory("y", None)

    def extra_repr(self):
        return f"element-wise function={self.element_wise_function}"

    def single_step_forward(self, x: Tensor):
        y = torch.zeros_like(x.data) if self.y is None else self.y
        self.y = self.sub_module(self.element_wise_function(y, x))
        return self.y


class LinearRecurrentContainerStep:
    """y_t = sub_module(W [x_t, y_{t-1}] + b)."""

    def __init__(self, sub_module: nn.Module, in_features: int, out_features: int, bias=True):
        super().__init__()
        refuse_all_steps(self, sub_module)
        self.sub_module_out_features = out_features
        self.rc = nn.Linear(in_features + out_features, in_features, bias)
        self.sub_module = sub_module
        self.register_memory("y", None)

    def single_step_forward(self, x: Tensor):
        if self.y is None:
            self.y = x.new_zeros(*x.shape[:-1], self.sub_module_out_features)
        self.y = self.sub_module(self.rc(torch.cat((x, self.y), dim=-1)))
        return self.y


def refuse_all_steps(container, *modules) -> None:
    """A container that calls its content once a timestep takes none that wants all of them."""
    for module in modules:
        if getattr(module, "step_mode", "s") != "s":
            raise ValueError(
                f"{type(container).__name__}: modules inside must have step_mode 's', "
                f"got {module.step_mode!r} of {type(module).__name__}"
            )


class TemporalWiseAttention(nn.Module):
    """Scales each timestep of [T, N, M] or [T, N, C, H, W] by a learned score (Yao et al. 2021,
    arXiv 2107.11711)."""

    def __init__(self, T: int, reduction: int = 16, dimension: int = 4):
        super().__init__()
        who = type(self).__name__
        if dimension not in (2, 4):
            raise ValueError(f"{who}: dimension must be 2 or 4, got {dimension}")
        if T < reduction:
            raise ValueError(f"{who}: reduction must be at most T, got {reduction} for T = {T}")
        self.dimension = dimension
        hidden = T // reduction
        self.sharedMLP = nn.Sequential(
            nn.Linear(T, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, T, bias=False)
        )

    def forward(self, x_seq: Tensor):
        if x_seq.dim() != 1 + self.dimension:
            raise ValueError(
                f"{type(self).__name__}: x must have {1 + self.dimension} axes, got {x_seq.dim()}"
            )
        steps = x_seq.transpose(0, 1).flatten(2)  # [N, T, ...]
        scores = self.sharedMLP(steps.mean(-1)) + self.sharedMLP(steps.amax(-1))
        scores = scores.sigmoid().t()
        return x_seq * scores.reshape(*scores.shape, *[1] * (x_seq.dim() - 2))


class DependentNorm:
    """Threshold-dependent batch normalisation of [T, N, C, ...] (Zheng et al. 2021, arXiv
    2011.05280): the weight starts at ``alpha v_th``. Behind it stands a norm of ``torch.nn``."""

    def __init__(self, alpha: float, v_th: float, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self.affine:
            raise ValueError(f"{type(self).__name__}: affine must be True, got False")
        self.alpha, self.v_th = alpha, v_th
        self.step_mode = "m"
        nn.init.constant_(self.weight, alpha * v_th)

    def forward(self, x_seq: Tensor):
        return seq_to_ann_forward(x_seq, super().forward)


class PrintShapeModule(nn.Module):
    """Prints the shape of what passes through."""

    def __init__(self, ext_str: str = "PrintShapeModule"):
        super().__init__()
        self.ext_str = ext_str

    def forward(self, x: Tensor):
        print(self.ext_str, x.shape)
        return x
