"""A NIR graph as a module that takes all timesteps, [T, B, ...]."""

import copy
import graphlib
import keyword
import operator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from snnfast.interop.nir._layers import Scale
from snnfast.interop.nir._nodes import DT, array
from snnfast.nn import (
    IF,
    LIF,
    BatchNormLIF,
    BatchNormNeuron,
    CubaLIF,
    Neuron,
    ParametricLIF,
    Synaptic,
)
from snnfast.nn.neuron import BaseNeuron
from snnfast.nn.over_time import over_time
from snnfast.ops.validation import check_positive, type_name
from snnfast.packages import require
from snnfast.reference.norm_lif import inverse_std

if TYPE_CHECKING:
    import nir


def from_nir(graph: "nir.NIRGraph", *, dt: float | None = None, fire: str | None = None,
             surrogate: str = "sigmoid") -> fx.GraphModule:  # fmt: skip
    """A ``nir.NIRGraph``, of ``to_nir`` or of others, as a module: x [T, B, ...] to spikes.

    Its layers are torch's and those of ``snnfast.nn``, under the names of the nodes, with gradients
    as ever; ``print(module.code)`` shows the forward. It is in evaluation mode. What ``to_nir``
    wrote comes back as the layers that it was, and gives the same spikes, bit for bit.

    Nodes are Affine, Linear, Conv1d, Conv2d, AvgPool2d, SumPool2d, Flatten, Scale, IF, LIF and
    CubaLIF, in any graph without a cycle. Parameters of neurons may differ from channel to channel;
    ``v_reset`` and ``v_leak`` of a LIF are one number.

    Args:
        dt: seconds of a timestep. None: what the graph says, which ``to_nir`` writes into its
            metadata, else 1e-4, which SpikingJelly and snnTorch take.
        fire: ">" as NIR has it, or ">=" at the threshold, too, as SpikingJelly does. None: what the
            node says, which ``to_nir`` writes into its metadata, else ">". CubaLIF has ">" always.
        surrogate: of the neurons, which NIR does not know.

    Raises:
        ImportError: nir is not installed.
        TypeError: ``graph`` is no NIRGraph.
        ValueError: ``from_nir: node ...``, one that snnfast has no layer for.
    """
    nir = require("nir", "nir")
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"from_nir: graph must be a nir.NIRGraph, got {type_name(graph)}")
    if fire not in (None, ">", ">="):
        raise ValueError(f"from_nir: fire must be '>', '>=' or None, got {fire!r}")
    dt = check_positive("from_nir", "dt", float(graph.metadata.get("dt", DT)) if dt is None else dt)
    return _Builder(graph, dt, fire, surrogate).build().eval()


class _Unknown(ValueError):
    """Says what a node must be, and what it is."""


class _Norm(NamedTuple):
    """A batch norm: its first and last node, and torch's module."""

    first: str
    last: str
    module: nn.Module

    @property
    def name(self) -> str:
        return self.last.removesuffix(".bias")


class _Builder:
    def __init__(self, graph, dt: float, fire: str | None, surrogate):
        nir = self.nir = require("nir", "nir")
        self.nodes = {name: _in_numpy(node) for name, node in graph.nodes.items()}
        self.dt, self.fire, self.surrogate = dt, fire, surrogate
        self.before = {name: [] for name in graph.nodes}
        self.behind = {name: [] for name in graph.nodes}
        for source, name in graph.edges:
            self.before[name].append(source)
            self.behind[source].append(name)
        self.root, self.code = nn.Module(), fx.Graph()
        self.values = {}  # by node: what it gives, in the code
        self.sums = {}  # by nodes
        self.norms = {}  # by the last node, or by the neuron with which it is one
        self.layers = {
            nir.Affine: _linear, nir.Linear: _linear, nir.Conv1d: _convolution,
            nir.Conv2d: _convolution, nir.AvgPool2d: _pool, nir.SumPool2d: _pool,
        }  # fmt: skip
        self.neurons = {nir.IF: self._if, nir.LIF: self._lif, nir.CubaLIF: self._cuba_lif}

    def build(self) -> fx.GraphModule:
        try:
            order = list(graphlib.TopologicalSorter(self.before).static_order())
        except graphlib.CycleError as error:
            loop = " -> ".join(error.args[1])
            raise ValueError(f"from_nir: graph must be without a cycle, got {loop}") from None
        for kind in (self.nir.Input, self.nir.Output):
            count = sum(isinstance(node, kind) for node in self.nodes.values())
            if count != 1:
                raise ValueError(f"from_nir: graph must have one {kind.__name__}, got {count}")
        inner = {part for name in order for part in self._find_norm(name)}
        for name in order:
            if name in inner:
                continue
            try:
                self._write(name, self.nodes[name], tuple(self.before[name]))
            except ValueError as why:
                kind = type(self.nodes[name]).__name__
                raise ValueError(f"from_nir: {kind} {name!r}: {why}") from None
        return fx.GraphModule(self.root, self.code, "FromNIR")

    def _find_norm(self, name: str) -> tuple[str, ...]:
        """The nodes that are written with the last of a batch norm, or with its neuron; ``name`` is
        the Scale within. What was changed since ``to_nir`` wrote it stays three nodes."""
        node, known = self.nodes[name], self.nodes[name].metadata
        around = (*self.before[name], *self.behind[name])
        if not isinstance(node, self.nir.Scale) or "running_var" not in known or len(around) != 2:
            return ()
        first, last = around
        if len(self.behind[first]) != 1 or len(self.before[last]) != 1:
            return ()
        numbers = [_plus(self.nodes[n]) for n in around]
        weight, var = (torch.tensor(known[k]) for k in ("weight", "running_var"))
        scale, eps = _row(node.scale), float(known["eps"])
        if any(number is None for number in numbers) or scale is None:
            return ()
        if not np.array_equal(np.broadcast_to(scale, len(weight)), weight * inverse_std(var, eps)):
            return ()
        module = (nn.BatchNorm2d if node.scale.ndim == 3 else nn.BatchNorm1d)(len(weight), eps)
        state = {"weight": weight, "running_var": var, "running_mean": -torch.tensor(numbers[0])}
        module.load_state_dict(state | {"bias": torch.tensor(numbers[1])}, strict=False)
        if not known["fused"]:
            self.norms[last] = _Norm(first, last, module)
            return first, name
        neuron, *others = self.behind[last]
        if others or type(self.nodes[neuron]) not in self.neurons or neuron in self.norms:
            return ()
        self.norms[neuron] = _Norm(first, last, module)
        return first, name, last

    def _write(self, name: str, node, sources: tuple[str, ...]) -> None:
        """A node, and the batch norm that ends there or joins it, as code."""
        if isinstance(node, self.nir.Input):
            self.values[name] = self.code.placeholder("x")
            return
        if not sources:
            raise _Unknown("it must have an input, got none")
        kind, norm = type(node), self.norms.get(name)
        module = self.neurons[kind](node) if kind in self.neurons else None
        if norm is not None:
            y = self._sum(tuple(self.before[norm.first]))
            if isinstance(module, (BaseNeuron, Neuron)):
                others = tuple(source for source in sources if source != norm.last)
                residual = (self._sum(others),) if others else ()
                module = _joined(norm.module, module)
                target = self._hold(norm.name, module)
                self.values[name] = self.code.call_module(target, (y, *residual))
                return
            self.values[norm.last] = self._over_time(norm.name, norm.module, y)
            if name == norm.last:
                return
        x = self._sum(sources)
        if module is not None:
            self.values[name] = self.code.call_module(self._hold(name, module), (x,))
        elif kind is self.nir.Output:
            self.code.output(x)
        elif kind is self.nir.AvgPool2d and node.metadata.get("mean"):
            self.values[name] = self.code.call_method("mean", (x, (-2, -1)), {"keepdim": True})
        elif kind in self.layers:
            self.values[name] = self._over_time(name, self.layers[kind](node), x)
        elif kind is self.nir.Scale:
            target = self._hold(name, Scale(_scale(node.scale)))
            self.values[name] = self.code.call_module(target, (x,))
        elif kind is self.nir.Flatten:
            dims = (d + 2 if d >= 0 else d for d in map(int, (node.start_dim, node.end_dim)))
            self.values[name] = self.code.call_method("flatten", (x, *dims))
        else:
            known = (*self.layers, self.nir.Scale, self.nir.Flatten, *self.neurons)
            raise _Unknown(f"nodes must be {', '.join(k.__name__ for k in known)}")

    def _sum(self, names: tuple[str, ...]) -> fx.Node:
        """From the left, as ``to_nir`` has it; each once."""
        if len(names) == 1:
            return self.values[names[0]]
        if names not in self.sums:
            terms = (self._sum(names[:-1]), self.values[names[-1]])
            self.sums[names] = self.code.call_function(operator.add, terms)
        return self.sums[names]

    def _over_time(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        if isinstance(module, nn.Linear):
            return self.code.call_module(self._hold(name, module), (x,))
        held = self.code.get_attr(self._hold(name, module))
        return self.code.call_function(over_time, (held, x))

    def _hold(self, name: str, module: nn.Module) -> str:
        """The module under the name of the node, or one like it that a module can have."""
        path = [_attribute(part) for part in name.split(".")]
        if not _is_free(self.root, path):
            path = ["_".join(path)]
            while not _is_free(self.root, path):
                path[0] += "_"
        home = self.root
        for part in path[:-1]:
            if part not in home._modules:
                home.add_module(part, nn.Module())
            home = home._modules[part]
        home.add_module(path[-1], module)
        return ".".join(path)

    def _ends(self, node) -> dict:
        return {
            "v_threshold": _number("v_threshold", node.v_threshold),
            "v_reset": _one_number("v_reset", node.v_reset),
            "fire": self.fire or node.metadata.get("fire", ">"),
            "surrogate": self.surrogate,
        }

    def _if(self, node) -> nn.Module:
        return _driven(IF(**self._ends(node)), node.r * self.dt)

    def _lif(self, node) -> nn.Module:
        tau, known, ends = _ratio(node.tau, self.dt), node.metadata, self._ends(node)
        if not (tau >= 1).all():
            raise _Unknown(f"tau must be >= dt, {self.dt:g} seconds, got {tau.min() * self.dt:g}")
        leak = _one_number("v_leak", node.v_leak)
        decay_input = not np.allclose(node.r, tau, _CLOSE, 0)
        if not decay_input and leak == 0 and _is_near(tau, known, "beta", lambda b: 1 / (1 - b)):
            return LIF(beta=_held(known["beta"]), **ends)
        ends |= {"decay_input": decay_input, "v_rest": None if leak == ends["v_reset"] else leak}
        row = _number("tau", tau)
        w = known["w"] if _is_near(tau, known, "w", lambda w: 1 + np.exp(-w)) else None
        if w is None and isinstance(row, float):
            neuron = LIF(row, **ends)
        else:
            shaped = row if w is None else torch.as_tensor(w)
            neuron = ParametricLIF(channels=len(shaped) if shaped.ndim else None, **ends)
            if w is None:
                neuron.tau = row
            else:
                neuron.w.data.copy_(shaped)
        return _driven(neuron, node.r) if decay_input else neuron

    def _cuba_lif(self, node) -> nn.Module:
        known, surrogate = node.metadata, self.surrogate
        syn, mem = (_ratio(tau, self.dt) for tau in (node.tau_syn, node.tau_mem))
        decays = (("alpha", syn, node.w_in), ("beta", mem, node.r))
        if not node.v_leak.any() and not node.v_reset.any() and all(
            _is_near(tau, known, name, lambda b: 1 / (1 - b)) and np.allclose(r, tau, _CLOSE, 0)
            for name, tau, r in decays
        ):  # fmt: skip
            return Synaptic(
                alpha=_held(known["alpha"]), beta=_held(known["beta"]),
                threshold=_number("v_threshold", node.v_threshold), reset_mechanism="zero",
                reset_delay=False, surrogate=surrogate,
            )  # fmt: skip
        own = float(known.get("dt", self.dt))
        numbers = {"tau_syn": _ratio(syn, 1 / own), "tau_mem": _ratio(mem, 1 / own)}
        numbers |= {name: getattr(node, name) for name in ("r", "v_leak", "v_threshold", "w_in")}
        numbers = {name: _number(name, value) for name, value in numbers.items()}
        v_reset = _one_number("v_reset", node.v_reset)
        return CubaLIF(**numbers, v_reset=v_reset, dt=own, surrogate=surrogate)


_CLOSE = 1e-5
"""Relative: what float32 leaves of a number, after some operations."""


def _in_numpy(node):
    """The node, in which snnTorch may have left tensors."""
    node = copy.copy(node)
    vars(node).update({k: array(v) for k, v in vars(node).items() if isinstance(v, Tensor)})
    return node


def _driven(neuron: nn.Module, r: np.ndarray) -> nn.Module:
    """``neuron`` with its inputs times r."""
    if np.allclose(r, 1, _CLOSE, 0):
        return neuron
    return nn.Sequential(Scale(_scale(r)), neuron)


def _is_near(tau: np.ndarray, known: dict, name: str, of) -> bool:
    """Whether metadata's number is, but for rounding, what the node says, in timesteps."""
    if name not in known:
        return False
    row = np.asarray(known[name], np.float64)
    return np.allclose(tau, of(row.reshape(-1, *[1] * (tau.ndim - 1))), _CLOSE, 0)


def _held(value):
    return torch.tensor(value) if np.ndim(value) else float(value)


def _ratio(tau: np.ndarray, dt: float) -> np.ndarray:
    """tau / dt, without what rounding made of 3.3 dt / dt."""
    tau = np.asarray(tau)
    if tau.dtype != np.float64:
        return (tau / tau.dtype.type(dt)).astype(np.float64)
    values, places = np.unique(tau / dt, return_inverse=True)
    return np.array([float(f"{value:.15g}") for value in values])[places].reshape(tau.shape)


def _row(array: np.ndarray) -> np.ndarray | None:
    """One number [] or one for each channel [C], where the array [C, ...] is no more."""
    array = np.asarray(array)
    if not array.size or (array == array.flat[0]).all():
        return array.reshape(-1)[:1].reshape(())
    row = array.reshape(len(array), -1)
    return row[:, 0] if (row == row[:, :1]).all() else None


def _number(name: str, array: np.ndarray) -> "float | Tensor":
    row = _row(array)
    if row is None:
        raise _Unknown(f"{name} must be the same within a channel, got another for each neuron")
    return torch.tensor(row, dtype=torch.float32) if row.ndim else float(row)


def _one_number(name: str, array: np.ndarray) -> float:
    row = _row(array)
    if row is None or row.ndim:
        raise _Unknown(f"{name} must be one number, got more")
    return float(row)


def _scale(array: np.ndarray) -> Tensor:
    """As it broadcasts to a timestep, small."""
    array, row = np.asarray(array), _row(array)
    small = array if row is None else row.reshape(-1, *[1] * (array.ndim - 1)) if row.ndim else row
    return torch.tensor(small, dtype=torch.float32)


def _holding(cls, *arguments, weight, bias, **named) -> nn.Module:
    module = nn.utils.skip_init(cls, *arguments, bias=bias is not None, **named)
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(weight))
        if bias is not None:
            module.bias.copy_(torch.as_tensor(bias))
    return module


def _linear(node) -> nn.Linear:
    if node.weight.ndim != 2:
        raise _Unknown(f"weight must be [outputs, inputs], got {list(node.weight.shape)}")
    outputs, inputs = node.weight.shape
    bias = getattr(node, "bias", None)
    return _holding(nn.Linear, inputs, outputs, weight=node.weight, bias=bias)


def _convolution(node) -> nn.Module:
    outputs, inputs, *kernel = node.weight.shape
    padding = node.padding if isinstance(node.padding, str) else _sides(node.padding)
    return _holding(
        nn.Conv1d if len(kernel) == 1 else nn.Conv2d, inputs * int(node.groups), outputs,
        tuple(kernel), _sides(node.stride), padding, _sides(node.dilation), int(node.groups),
        weight=node.weight, bias=node.bias if np.any(node.bias) else None,
    )  # fmt: skip


def _pool(node) -> nn.AvgPool2d:
    total = 1 if type(node).__name__ == "SumPool2d" else None
    sides = (_sides(side) for side in (node.kernel_size, node.stride, node.padding))
    return nn.AvgPool2d(*sides, divisor_override=total)


def _sides(value) -> "int | tuple[int, ...]":
    return tuple(map(int, value)) if np.ndim(value) else int(value)


def _plus(node) -> np.ndarray | None:
    """The bias of an affine node that multiplies by one; None of another node."""
    weight = getattr(node, "weight", None)
    if weight is None or not hasattr(node, "bias") or weight.size != len(weight) ** 2:
        return None
    one = np.eye(len(weight))
    return node.bias if np.array_equal(weight.reshape(one.shape), one) else None


def _joined(norm: nn.Module, neuron: nn.Module) -> BatchNormNeuron:
    cls = BatchNormLIF if isinstance(neuron, BaseNeuron) else BatchNormNeuron
    module = cls(norm.num_features, eps=norm.eps, neuron=neuron)
    module.load_state_dict(norm.state_dict(), strict=False)
    return module


def _attribute(part: str) -> str:
    """The name that a module can have for it."""
    taken = not part or keyword.iskeyword(part) or hasattr(fx.GraphModule, part)
    return f"{part}_" if taken or part in ("training", "code") else part


def _is_free(root: nn.Module, path: list[str]) -> bool:
    for part in path[:-1]:
        if part not in root._modules:
            return True
        root = root._modules[part]
        if type(root) is not nn.Module:
            return False
    return path[-1] not in root._modules
