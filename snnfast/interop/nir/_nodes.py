"""Layers as nodes of NIR, by their parameters and the shapes of one timestep."""

import numpy as np
import torch
from torch import Tensor, nn

from snnfast import neurons
from snnfast.nn import IF, LIF, BatchNormLIF, BatchNormNeuron, Neuron, ParametricLIF
from snnfast.nn.batch_norm import BatchNorm2d
from snnfast.nn.neuron import BaseNeuron
from snnfast.packages import require
from snnfast.reference.norm_lif import inverse_std

DT = 1e-4
"""Seconds of a timestep where nothing is said, as in SpikingJelly and snnTorch."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.LPPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d, nn.SyncBatchNorm)
FUSED = (BatchNormLIF, BatchNormNeuron)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""In evaluation."""

Shape = tuple[int, ...]


class Unsayable(ValueError):
    """Says what a layer must be for NIR, and what it is."""


def array(value: Tensor) -> np.ndarray:
    """A copy, in float32 at least."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    return value.detach().to("cpu", dtype, copy=True).numpy()


def convolution(module: nn.Module, inputs: Shape):
    if module.groups != 1:  # whose channels the types of NIR's graph take for those of one group
        raise Unsayable(f"groups must be 1, got {module.groups}")
    if module.padding_mode != "zeros":
        raise Unsayable(f"padding_mode must be 'zeros', got {module.padding_mode!r}")
    if len(set(module.kernel_size)) > 1:  # whose width these types take for its height
        raise Unsayable(f"the kernel must be square, got {list(module.kernel_size)}")
    weight, nir = array(module.weight), require("nir", "nir")
    flat = isinstance(module, nn.Conv1d)
    padding = module.padding[0] if flat and not isinstance(module.padding, str) else module.padding
    return (nir.Conv1d if flat else nir.Conv2d)(
        input_shape=inputs[-1] if flat else inputs[-2:],
        weight=weight,
        stride=module.stride[0] if flat else module.stride,
        padding=padding,
        dilation=module.dilation[0] if flat else module.dilation,
        groups=1,
        bias=np.zeros(len(weight), weight.dtype) if module.bias is None else array(module.bias),
    )


def linear(module: nn.Linear, inputs: Shape):
    if len(inputs) != 1:
        raise Unsayable(f"a timestep must be [B, features], got [B, {', '.join(map(str, inputs))}]")
    nir = require("nir", "nir")
    if module.bias is None:
        return nir.Linear(array(module.weight))
    return nir.Affine(array(module.weight), array(module.bias))


def mean_pool(kernel: Shape):
    nir = require("nir", "nir")
    return nir.AvgPool2d(np.array(kernel), np.array(kernel), np.zeros(2, int))


def pool(module: nn.Module, inputs: Shape):
    if isinstance(module, nn.AdaptiveAvgPool2d):
        sides = module.output_size
        sides = sides if isinstance(sides, tuple) else (sides, sides)
        wanted = [n if m is None else m for m, n in zip(sides, inputs[-2:])]
        if any(n % m for m, n in zip(wanted, inputs[-2:])):
            raise Unsayable(f"output_size must divide {list(inputs[-2:])}, got {wanted}")
        return mean_pool(tuple(n // m for m, n in zip(wanted, inputs[-2:])))
    if module.ceil_mode:
        raise Unsayable("ceil_mode must be False, got True")
    kernel = _pair(module.kernel_size)
    stride = _pair(module.kernel_size if module.stride is None else module.stride)
    padding = _pair(getattr(module, "padding", 0))
    nir = require("nir", "nir")
    if isinstance(module, nn.LPPool2d):
        if module.norm_type != 1:
            raise Unsayable(f"norm_type must be 1, got {module.norm_type}")
        return nir.SumPool2d(kernel, stride, padding)
    if padding.any() and not module.count_include_pad:
        raise Unsayable("count_include_pad must be True, got False")
    if module.divisor_override == 1:
        return nir.SumPool2d(kernel, stride, padding)
    if module.divisor_override not in (None, kernel.prod()):
        raise Unsayable(f"divisor_override must be None or 1, got {module.divisor_override}")
    return nir.AvgPool2d(kernel, stride, padding)


def _pair(value) -> np.ndarray:
    return np.broadcast_to(np.array(value), 2).copy()


def batch_norm(norm: nn.Module, shape: Shape) -> dict:
    """{suffix: node} of (y - mean) scale + bias on [C, ...]."""
    if norm.running_mean is None:
        raise Unsayable("track_running_stats must be True, got False")
    mean, var = norm.running_mean.detach(), norm.running_var.detach()
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    scale = array(weight * inverse_std(var, norm.eps))
    known = {"weight": array(weight), "running_var": array(var), "eps": norm.eps, "fused": False}
    node = require("nir", "nir").Scale(spread(scale, shape, scale.dtype), metadata=known)
    return {".mean": _shift(-mean, shape), ".scale": node, ".bias": _shift(bias, shape)}


def scale(number: Tensor, shape: Shape):
    return require("nir", "nir").Scale(np.broadcast_to(array(number), shape).copy())


def _shift(number: Tensor, shape: Shape):
    """1 x + number, in which a product or sum with zeros is exact."""
    nir, number = require("nir", "nir"), array(number)
    one = np.eye(len(number), dtype=number.dtype)
    if len(shape) == 1:
        return nir.Affine(one, number)
    if len(shape) == 2:
        return nir.Conv1d(shape[1], one[..., None], 1, 0, 1, 1, number)
    if len(shape) == 3:
        return nir.Conv2d(shape[1:], one[..., None, None], (1, 1), (0, 0), (1, 1), 1, number)
    raise Unsayable(f"a timestep must be [B, C], [B, C, L] or [B, C, H, W], got {len(shape)} axes")


def spread(value: "float | Tensor | np.ndarray", shape: Shape, dtype=np.float64) -> np.ndarray:
    """A number, or numbers [C], for each neuron of a timestep [C, ...]."""
    value = np.asarray(array(value) if isinstance(value, Tensor) else value, dtype)
    return np.broadcast_to(value.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()


def exact(value: "float | Tensor"):
    """As metadata holds it."""
    return value if not isinstance(value, Tensor) else array(value) if value.dim() else value.item()


def neuron(module: nn.Module, shape: Shape, dt: float):
    if module.return_state:
        raise Unsayable(f"return_state must be False, got {module.return_state!r}")
    if isinstance(module, BaseNeuron):
        return _lif(module, shape, dt)
    make = _MADE.get(module.neuron) if isinstance(module, Neuron) else None
    if make is None:
        known = "IF, LIF, ParametricLIF, CubaLIF, Leaky or Synaptic"
        raise Unsayable(f"neurons must be {known} of snnfast.nn")
    defaults = module.neuron.defaults
    return make({k: getattr(module, k, default) for k, default in defaults.items()}, shape, dt)


def _lif(module: BaseNeuron, shape: Shape, dt: float):
    if module.time_axis != 0:
        raise Unsayable(f"time_axis must be 0, got {module.time_axis!r}")
    if module.v_reset is None:
        raise Unsayable("v_reset must be a number, for NIR has no soft reset, got None")
    nir = require("nir", "nir")
    known = {"fire": module.fire}
    ends = {name: spread(getattr(module, name), shape) for name in ("v_threshold", "v_reset")}
    if type(module) is IF:
        return nir.IF(spread(1 / dt, shape), **ends, metadata=known)
    if type(module) is LIF and module.beta is not None:
        return _decaying(module.beta, ends, known, shape, dt)
    if type(module) is ParametricLIF:
        known["w"] = exact(module.w)
        tau = spread(1 / module.w.detach().sigmoid().double(), shape)
    elif type(module) is LIF:
        tau = spread(module.tau, shape)
    else:
        raise Unsayable("neurons must be IF, LIF or ParametricLIF themselves")
    if not np.isfinite(tau).all():
        raise Unsayable("tau must be finite, got inf")
    leak = module.v_reset if module.v_rest is None else module.v_rest
    r = np.ones(shape) if module.decay_input else tau
    return nir.LIF(tau * dt, r.copy(), spread(leak, shape), **ends, metadata=known)


def _decaying(beta, ends: dict, known: dict, shape: Shape, dt: float):
    known["beta"] = exact(beta)
    return require("nir", "nir").LIF(
        dt * _steps("beta", beta, shape), _steps("beta", beta, shape), np.zeros(shape), **ends,
        metadata=known,
    )  # fmt: skip


def _steps(name: str, decay, shape: Shape) -> np.ndarray:
    """The time constant, in timesteps, of what decays by that."""
    decay = spread(decay, shape)
    if not ((decay >= 0) & (decay < 1)).all():
        raise Unsayable(f"{name} must be in 0 .. 1 and below 1, got {decay.max():g}")
    return 1 / (1 - decay)


def _reset_to_zero(numbers: dict, needs_no_delay: bool) -> None:
    if numbers["reset_mechanism"] != "zero":
        got = numbers["reset_mechanism"]
        raise Unsayable(f"reset_mechanism must be 'zero', NIR's only reset, got {got!r}")
    if needs_no_delay and numbers["reset_delay"]:
        raise Unsayable("reset_delay must be False, for NIR has no late reset, got True")


def _leaky(numbers: dict, shape: Shape, dt: float):
    _reset_to_zero(numbers, needs_no_delay=False)  # late or not, the next step starts from 0
    ends = {"v_threshold": spread(numbers["threshold"], shape), "v_reset": np.zeros(shape)}
    return _decaying(numbers["beta"], ends, {"fire": ">"}, shape, dt)


def _synaptic(numbers: dict, shape: Shape, dt: float):
    _reset_to_zero(numbers, needs_no_delay=True)
    syn, mem = (_steps(name, numbers[name], shape) for name in ("alpha", "beta"))
    return require("nir", "nir").CubaLIF(
        dt * syn, dt * mem, mem, np.zeros(shape), spread(numbers["threshold"], shape),
        np.zeros(shape), syn,
        metadata={name: exact(numbers[name]) for name in ("alpha", "beta")},
    )  # fmt: skip


def _cuba_lif(numbers: dict, shape: Shape, dt: float):
    if numbers["v_reset"] is None:
        raise Unsayable("v_reset must be a number, for NIR has no soft reset, got None")
    faster = dt / exact(numbers["dt"])
    of = {name: spread(value, shape) for name, value in numbers.items() if name in _CUBA}
    of |= {name: of[name] * faster for name in ("tau_syn", "tau_mem")}
    return require("nir", "nir").CubaLIF(**of, metadata={"dt": exact(numbers["dt"])})


_CUBA = ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in")
_MADE = {
    neurons.cuba_lif: _cuba_lif,
    neurons.leaky: _leaky,
    neurons.synaptic: _synaptic,
}
