"""A model as a NIR graph: it runs once on an example, and what it calls is written down."""

import inspect
import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snnfast.interop.nir import _nodes
from snnfast.interop.nir._layers import Scale
from snnfast.interop.nir._nodes import DT, Unsayable
from snnfast.nn.fuse import unfused
from snnfast.nn.stateful import Stateful
from snnfast.nn.streaming import is_streaming
from snnfast.ops.validation import check_positive, type_name
from snnfast.packages import require

if TYPE_CHECKING:
    import nir

_PLAIN = (nn.Linear, nn.Flatten, Scale)
_LAYERS = (
    *_nodes.CONVOLUTIONS, *_nodes.POOLS, *_nodes.NORMS, *_nodes.FUSED, *_nodes.NOTHING, *_PLAIN,
)  # fmt: skip
_SAME = ("contiguous", "detach", "clone")
_SUMS = ("add", "__add__", "__radd__", "add_", "__iadd__", "iadd")
_POOLS = {"avg_pool2d": nn.AvgPool2d, "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d}
_RESHAPES = ("view", "reshape", "unflatten")
_ASKED = (
    "shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "__len__", "dtype", "device",
    "layout", "itemsize", "element_size", "stride", "is_contiguous", "is_floating_point",
    "is_complex", "is_cuda", "is_cpu", "is_sparse", "is_quantized", "is_meta", "get_device",
    "is_inference", "is_leaf", "requires_grad", "grad_fn", "names", "_version", "__hash__",
    "__repr__", "__format__",
)  # fmt: skip
"""Of a tensor, what changes nothing and puts no numbers of it into the model."""


def to_nir(model: nn.Module, example: Tensor, *, dt: float = DT) -> "nir.NIRGraph":
    """``model`` as a ``nir.NIRGraph``, for ``nir.write`` and the simulators and chips that read it.

    The model runs once on ``example``, in evaluation mode, and its layers are written down as they
    are called; their names are those of the nodes, ``layer1.0.conv1``::

        Conv1d, Conv2d, Linear          nodes of that name; a Linear with a bias is an Affine
        AvgPool2d, AdaptiveAvgPool2d,   AvgPool2d
        means over height and width
        AvgPool2d of divisor_override   SumPool2d
        1, LPPool2d of norm_type 1
        Flatten, view, reshape          Flatten
        +                               two edges into one node
        BatchNorm1d, BatchNorm2d        three nodes: the sum, the product and the sum that they are
        BatchNormLIF, BatchNormNeuron   these and the neuron; so are layers that ``fuse`` has joined
        IF, LIF, ParametricLIF          IF, LIF, LIF
        CubaLIF, Synaptic, Leaky        CubaLIF, CubaLIF, LIF; the last two with the reset "zero"

    ``snnfast.nn.OverTime`` and whatever else folds time into the batch leaves no trace, for a graph
    has no time axis. NIR resets to a potential (``v_reset=None`` is refused), and fires above the
    threshold: ours fire at it, too, unless they have ``fire=">"``. Thresholds are written as they
    are, and how a neuron fires into the node's metadata.

    Args:
        example: [T, B, ...] as the model takes it.
        dt: seconds of a timestep. A time constant is dt tau; CubaLIF's are stretched from its own
            ``dt`` to this one.

    Raises:
        ImportError: nir is not installed.
        TypeError: ``model`` is no module, ``example`` no tensor.
        ValueError: ``to_nir: MaxPool2d 'pool': ...``, a layer that NIR cannot say, or another
            operation, such as a write in place; ``model`` is streaming, or not float32.
    """
    nir = require("nir", "nir")
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_nir: model must be a torch module, got {type_name(model)}")
    if not isinstance(example, Tensor):
        raise TypeError(f"to_nir: example must be a tensor, got {type_name(example)}")
    if example.dim() < 3:
        raise ValueError(f"to_nir: example must be [T, B, ...], got {list(example.shape)}")
    dt = check_positive("to_nir", "dt", dt)
    if is_streaming(model):
        raise ValueError("to_nir: model must not be streaming, got one inside of snnfast.streaming")
    for name, own in itertools.chain(model.named_parameters(), model.named_buffers()):
        if own.is_floating_point() and own.dtype != torch.float32:
            got = f"{str(own.dtype).removeprefix('torch.')} in {name!r}"
            raise ValueError(f"to_nir: model must be float32, got {got}; write model.float()")
    training = {m: m.training for m in model.modules()}
    # Tensors of inference mode do not count what is written to them.
    with torch.inference_mode(False), torch.no_grad(), unfused(model) as fused:
        example = example.clone() if example.is_inference() else example
        recorder = _Recorder(model, example, fused, dt)
        try:
            model.eval()
            with recorder:
                result = model(example)
        finally:
            recorder.close()
            for m, mode in training.items():
                m.training = mode
    value = recorder.find(result)
    if value is None:
        raise ValueError(
            f"to_nir: model must return a tensor that it computes from x, got {type_name(result)}"
        )
    recorder.add("output", nir.Output(np.array(result.shape[value.lead :])), value)
    return nir.NIRGraph(recorder.nodes, recorder.edges, metadata={"dt": dt})


class _Value(NamedTuple):
    """A tensor of the model: the nodes whose sum it is, and how many of its axes are time and
    batch, 2, or 1 where they are one."""

    sources: tuple[str, ...]
    lead: int


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, example: Tensor, fused, dt: float):
        super().__init__()
        nir = require("nir", "nir")
        self.steps, self.batch = example.shape[:2]
        self.fused, self.dt = fused, dt
        self.joining = {}  # {what a neuron may read: the Scale of the norm that is one with it}
        self.nodes = {"input": nir.Input(np.array(example.shape[2:]))}
        self.edges = []
        self.values = {}  # {id: (tensor, kept or another may get its id, its version, _Value)}
        self._give(example, _Value(("input",), 2))
        self.stack = [(model, type(model).__name__)]
        self.inside = None  # a layer, whose operations are its own
        self.hooks = []
        for name, module in model.named_modules():
            self.hooks += (
                module.register_forward_pre_hook(self._enter(name), with_kwargs=True),
                # Before other hooks, whose operations are then seen as the model's.
                module.register_forward_hook(self._leave, with_kwargs=True, prepend=True),
            )

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def add(self, name: str, node, value: _Value) -> _Value:
        """The value of a new node of about that name, fed by ``value``."""
        free, count = name, 1
        while free in self.nodes:
            free, count = f"{name}_{count}", count + 1
        self.nodes[free] = node
        self.edges += ((source, free) for source in value.sources)
        return _Value((free,), value.lead)

    def find(self, x) -> _Value | None:
        """None, too, of what was written to since, be it through another tensor."""
        tensor, version, value = self.values.get(id(x), (None, None, None))
        return value if tensor is not None and tensor._version == version else None

    def _give(self, tensor: Tensor, value: _Value) -> None:
        if tensor.is_inference():
            raise Unsayable("it must not enter torch.inference_mode itself")
        self.values[id(tensor)] = tensor, tensor._version, value

    def _refuse(self, why) -> ValueError:
        module, name = self.stack[-1]
        return ValueError(f"to_nir: {type(module).__name__} {name!r}: {why}")

    def _enter(self, name: str):
        def hook(module, args, kwargs):
            if self.inside is None:
                self.stack.append((module, name or type(module).__name__))
                if type(module) in _LAYERS or isinstance(module, Stateful):
                    self.inside = module

        return hook

    def _leave(self, module, args, kwargs, output):
        if self.inside not in (None, module):
            return
        if self.inside is module:
            try:
                self._layer(module, args, kwargs, output)
            except ValueError as why:
                raise self._refuse(why) from None
            self.inside = None
        self.stack.pop()

    def _layer(self, module, args, kwargs, output) -> None:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        given.pop(next(iter(given)))
        x, residual = args[0] if args else None, given.pop("residual", None)
        given.pop("repeats", None)  # of BatchNorm2d, which counts in training alone
        value, name = self.find(x), self.stack[-1][1]
        if value is None:
            raise Unsayable(
                "its input must be a tensor that the model computes from x, got another"
            )
        if any(extra is not None for extra in given.values()):
            raise Unsayable(f"it must be called with its input alone, got {', '.join(given)}")
        inputs = tuple(x.shape[value.lead :])
        if type(module) is nn.Flatten:
            value = self._flatten(value, x, module.start_dim, module.end_dim, name)
        elif type(module) is nn.Linear:
            value = self.add(name, _nodes.linear(module, inputs), value)
        elif type(module) is Scale:
            value = self.add(name, _nodes.scale(module.scale, inputs), value)
        elif type(module) in _nodes.FUSED:
            self._time_first(value, output)
            value = self._norm(module, name, value, inputs, True)
            if residual is not None:
                value = self._sum(value, self._known(residual), x.shape)
            value = self._neuron(module.neuron, f"{name}.neuron", value, inputs)
        elif isinstance(module, Stateful):
            self._time_first(value, output)
            value = self._neuron(module, name, value, inputs)
        elif type(module) not in _nodes.NOTHING:
            if value.lead != 1:
                raise Unsayable(
                    f"its input must have time folded into the batch, got {list(x.shape)}"
                )
            if type(module) in _nodes.NORMS:
                value = self._norm(module, name, value, inputs, module in self.fused)
            elif type(module) in _nodes.POOLS:
                value = self.add(name, _nodes.pool(module, inputs), value)
            else:
                value = self.add(name, _nodes.convolution(module, inputs), value)
        self._give(output, value)

    def _norm(self, module, name: str, value: _Value, shape, fused: bool) -> _Value:
        for suffix, node in _nodes.batch_norm(module, shape).items():
            value = self.add(name + suffix, node, value)
            if fused and suffix == ".scale":
                scale = node
        if fused:
            self.joining[value.sources[0]] = scale
        return value

    def _neuron(self, module, name: str, value: _Value, shape) -> _Value:
        for source in value.sources:
            if source in self.joining:
                self.joining[source].metadata["fused"] = True
        return self.add(name, _nodes.neuron(module, shape, self.dt), value)

    def _time_first(self, value: _Value, output) -> None:
        if not isinstance(output, Tensor):
            raise Unsayable("it must return its spikes alone, got more")
        if value.lead != 2:
            raise Unsayable("its input must be [T, B, ...], got time folded into the batch")

    def _known(self, x) -> _Value:
        value = self.find(x)
        if value is None:
            raise Unsayable(f"sums must be of what the model computes from x, got {type_name(x)}")
        return value

    def _sum(self, a: _Value, b: _Value, shape) -> _Value:
        """NIR adds what leads into a node, and readers of ours do from the left: only a first term
        may be a sum itself."""
        if len(b.sources) > 1:
            a, b = b, a
        if len(b.sources) > 1 or set(a.sources) & set(b.sources):
            one = require("nir", "nir").Scale(np.ones(tuple(shape)[b.lead :], np.float32))
            b = self.add(f"{self.stack[-1][1]}.same", one, b)
        return _Value(a.sources + b.sources, a.lead)

    def _flatten(self, value, x, start=0, end=-1, name: str | None = None) -> _Value:
        start, end = start % x.dim(), end % x.dim()
        if (start, end) == (0, 1) and value.lead == 2:
            return _Value(value.sources, 1)
        if start < value.lead:
            raise Unsayable(
                f"what it flattens must be axes of a timestep, got axes {start} to {end} of "
                f"{list(x.shape)}, of which {value.lead} are time and batch"
            )
        if start == end:
            return value
        shape, lead = np.array(x.shape[value.lead :]), value.lead
        last = -1 if end == x.dim() - 1 else end - lead
        node = require("nir", "nir").Flatten({"input": shape}, start - lead, last)
        flat = self.add(name or f"{self.stack[-1][1]}.flatten", node, value)
        if start > lead and value.sources[0] in self.joining:  # channels are what they were
            self.joining[flat.sources[0]] = self.joining[value.sources[0]]
        return flat

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = _name(function)
        if self.inside is not None or name in _ASKED:
            return function(*args, **kwargs)
        known = {id(x): value for x in _tensors((args, kwargs)) if (value := self.find(x))}
        result = function(*args, **kwargs)
        if known:
            try:
                self._give(result, self._operation(name, result, args, kwargs, known))
            except ValueError as why:
                raise self._refuse(why) from None
        return result

    def _operation(self, name: str, result, args, kwargs, known: dict[int, _Value]) -> _Value:
        """``known``: of its inputs, as they were before it, those that the model computes from
        x."""
        x = args[0] if args else None
        value = known.get(id(x))
        if value is not None and name in _SAME:
            return value
        if name in _SUMS and len(args) == 2 and not kwargs:
            if not all(isinstance(a, Tensor) and a.shape == result.shape for a in args):
                raise Unsayable("what it adds must have one shape, got a number or another shape")
            terms = (known.get(id(a)) or self._known(a) for a in args)
            return self._sum(*terms, result.shape)
        if value is not None and name == "flatten":
            return self._flatten(value, *args, **_renamed(kwargs))
        if value is not None and name in _RESHAPES:
            return self._reshape(value, x, result)
        if value is not None and name in _POOLS:
            node = _nodes.pool(_POOLS[name](*args[1:], **kwargs), tuple(x.shape[value.lead :]))
            return self.add(f"{self.stack[-1][1]}.{name}", node, value)
        if value is not None and name == "mean":
            return self._mean(value, x, result, *args[1:], **kwargs)
        raise Unsayable(f"it must be made of {_KNOWN}, got {name}")

    def _reshape(self, value: _Value, x: Tensor, result: Tensor) -> _Value:
        """Time and batch together or apart, or a timestep flat."""
        own = tuple(x.shape[value.lead :])
        for front in ((self.steps * self.batch,), (self.steps, self.batch)):
            lead = len(front)
            if tuple(result.shape[:lead]) != front:
                continue
            if own == (rest := tuple(result.shape[lead:])):
                return _Value(value.sources, lead)
            for i, k in itertools.combinations(range(len(own)), 2):
                if rest == (*own[:i], math.prod(own[i : k + 1]), *own[k + 1 :]):
                    flat = self._flatten(value, x, value.lead + i, value.lead + k)
                    return flat._replace(lead=lead)
        raise Unsayable(
            f"a reshape must fold time into the batch, or flatten a timestep, got one of "
            f"{list(x.shape)} to {list(result.shape)}"
        )

    def _mean(self, value: _Value, x: Tensor, result: Tensor, dim=None, keepdim=False, **other):
        axes = sorted(d % x.dim() for d in ((dim,) if isinstance(dim, int) else dim or ()))
        if other or axes != [x.dim() - 2, x.dim() - 1] or x.dim() != value.lead + 3:
            raise Unsayable(
                "means must be over the height and width of [..., C, H, W], got another"
            )
        name, size = self.stack[-1][1], tuple(x.shape[-2:])
        node = _nodes.mean_pool(size)
        node.metadata["mean"] = True  # which sums in another order
        value = self.add(f"{name}.mean", node, value)
        if keepdim:
            return value
        shape = np.array([x.shape[-3], 1, 1])
        node = require("nir", "nir").Flatten({"input": shape}, 0, -1)
        return self.add(f"{name}.flatten", node, value)


_KNOWN = (
    "convolutions, Linear, average and sum pools, Flatten, batch norms, neurons of snnfast.nn and "
    "sums"
)


def _renamed(kwargs: dict) -> dict:
    return {name.removesuffix("_dim"): value for name, value in kwargs.items()}


def _name(function) -> str:
    """``shape`` of what looks that up, ``data.__set__`` of what sets that."""
    name = getattr(function, "__name__", str(function))
    if name not in ("__get__", "__set__"):
        return name
    attribute = function.__self__.__name__
    return attribute if name == "__get__" else f"{attribute}.{name}"


def _tensors(found):
    """Those within arguments, however nested."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (tuple, list, dict)):
        for part in found.values() if isinstance(found, dict) else found:
            yield from _tensors(part)
