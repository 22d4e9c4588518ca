"""Models as ONNX, by standard operators: the neurons are a Scan over time of their step.

torch.onnx translates what the layers of torch are. Here stands what the ops of snnfast are, each
operation of a neuron's program one operator of ONNX, in the same order; and what a batch norm is:
Sub, Mul and Add, for runtimes fold a BatchNormalization into the convolution before it, which moves
potentials by an ulp, and spikes with them.
"""

import itertools
import logging
import math
import os
import warnings
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snnfast.backends import spec as specs
from snnfast.backends.spec import LifLayer, Step
from snnfast.interop.pt2 import exported
from snnfast.ops import layer as layers
from snnfast.ops.neuron import neuron
from snnfast.packages import require
from snnfast.program.ir import Program
from snnfast.reference.lif import charge
from snnfast.reference.neuron import spike

_LARGEST = 2**31 - 2**24
"""Bytes of weights that still lie within one file."""

_OPERATORS = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "max": "Max",
    "pow": "Pow", "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "lt": "Less", "eq": "Equal", "and": "And", "or": "Or", "not": "Not",
    "where": "Where",
}  # fmt: skip


def export(model: nn.Module, example, path: "str | os.PathLike", *, step: bool = False,
           dynamic_shapes=None) -> dict[str, Tensor]:  # fmt: skip
    """Writes ``model`` as ONNX, of standard operators alone.

    Args:
        model: in evaluation mode, with all that is in it, and not streaming; layers of torch and of
            ``snnfast.nn``.
        example: what the model is called with: a tensor, or a tuple of tensors.
        path: the file; it is replaced.
        step: one timestep: inputs x [B, ...] instead of [T, B, ...] and the state of every layer of
            neurons, outputs those of the model and the new states. Without it the whole sequence,
            a Scan over time for every layer of neurons.
        dynamic_shapes: as in ``torch.export.export``; without it shapes are those of the example.

    Returns the states at rest by the names of their inputs; the outputs have ``.next`` behind that.
    {} without ``step``.

    A step has the operations and their order that ``snnfast.lif`` and ``snnfast.neuron`` have:
    spikes are equal where the runtime's layers between them give the same. State and arithmetic are
    float32 (float64 for float64 input).

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError, ValueError: ``onnx.export: <argument> must be ..., got ...``; what torch.export
            and torch.onnx raise where they cannot follow the model.
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    program, rest = exported("onnx.export", model, example, step, dynamic_shapes)
    _check(program)
    outputs = len(program.graph_signature.user_outputs) - len(rest)
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    inputs = len(program.graph_signature.user_inputs) - len(rest)
    with _quiet():
        written = torch.onnx.export(
            program,
            input_names=[*_names("x", inputs), *rest],
            output_names=[*_names("y", outputs), *(f"{name}.next" for name in rest)],
            custom_translation_table=_table(),
            dynamo=True,
            verbose=False,
        )
        _name_steps(written.model.graph)
        written.save(os.fspath(path), external_data=weights > _LARGEST)
    return rest


def _name_steps(graph) -> None:
    """Within a Scan no value may have the name of one outside; the exporter sees to it for names
    that are taken before."""
    count = itertools.count()
    for body in graph.subgraphs():
        for value in (*body.inputs, *(value for node in body for value in node.outputs)):
            value.name = f"step/{next(count)}"


@contextmanager
def _quiet():
    """Without what torch.onnx and onnxscript say of other packages and of their own code."""
    logs = {log: log.level for log in map(logging.getLogger, ("torch.onnx", "onnx_ir"))}
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, level in logs.items():
            log.setLevel(level)


def _names(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}{k}" for k in range(count)]


def _check(program) -> None:
    """ValueError for what of a model has no translation."""
    known = _table()
    for node in program.graph.nodes:
        name = str(node.target)
        lif = name.startswith(("snnfast.lif_forward", "snnfast.norm_lif_forward"))
        if name.startswith("snnfast.norm_stats") or (
            node.target is torch.ops.aten.batch_norm.default and node.args[5]
        ):
            raise ValueError(
                "onnx.export: batch norms must take running statistics, got one that takes those "
                "of the batch"
            )
        if lif and not LifLayer.unpack(*node.args[-5:-3]).spiking:
            raise ValueError("onnx.export: surrogates must be spiking, got one that is not")
        if name.startswith("snnfast.") and node.target not in known:
            raise ValueError(f"onnx.export: ops must be ones that ONNX can say, got {name}")


def _table() -> dict:
    ours = torch.ops.snnfast
    return {
        ours.lif_forward.default: _lif,
        ours.norm_lif_forward.default: _norm_lif,
        ours.norm_prepare.default: _norm_prepare,
        ours.neuron_forward.default: _neuron,
        # What torch.onnx makes of batch_norm before it translates.
        torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm,
    }


class _Graph:
    """Nodes of ONNX in order, those of the graph that is being made, or of a body in it."""

    def __init__(self):
        self.ir = require("onnxscript", "onnx").ir
        self.nodes = []

    def op(self, name: str, *inputs, **attributes):
        return self.many(1, name, *inputs, **attributes)[0]

    def many(self, outputs: int, name: str, *inputs, **attributes):
        inputs = [self.constant(v) if isinstance(v, list) else v for v in inputs]
        node = self.ir.node(name, inputs, attributes or None, num_outputs=outputs)
        self.nodes.append(node)
        return node.outputs

    def constant(self, value, dtype=None):
        """``value`` in ``dtype``, by default int64."""
        dtype = self.ir.DataType.INT64 if dtype is None else dtype
        return self.op("Constant", value=self.ir.tensor(value, dtype=dtype))

    def typed(self, values, dtype, dims):
        for value in values:
            value.dtype, value.shape = dtype, self.ir.Shape(dims)
        return values

    def cast(self, value, dtype):
        return value if value.dtype == dtype else self.op("Cast", value, to=dtype)

    def done(self, *values):
        """``values`` as the exporter takes them, which has the nodes from now on."""
        onnxscript = require("onnxscript", "onnx")
        onnxscript.evaluator.default().nodes.extend(self.nodes)
        found = [onnxscript.opset18.Identity(value) for value in values]
        for made, value in zip(found, values, strict=True):
            made.shape, made.dtype = value.shape, value.dtype  # lists of them get none
        return found if len(found) > 1 else found[0]


def _state_dtype(g: _Graph, x):
    wide = x.dtype == g.ir.DataType.DOUBLE
    return g.ir.DataType.DOUBLE if wide else g.ir.DataType.FLOAT


class _Neurons:
    """A layer of neurons: ``program`` of ``inputs``, of which ``dtype`` says what its ``outputs``
    are of. ``steps``: T, of which a static input says nothing."""

    def __init__(self, g: _Graph, program: Program, outputs: int, inputs, params, static, steps,
                 dtype):  # fmt: skip
        self.g, self.program, self.outputs, self.dtype = g, program, outputs, dtype
        x, self.inputs, self.static = inputs[0], inputs, static
        self.steps = steps if static else x.shape[0]
        self.real = _state_dtype(g, x)
        self.dims = list(x.shape)[not static :]
        self.shape = g.op("Shape", x, start=0 if static else 1)
        wide = [-1, *[1] * (len(self.dims) - 2)]  # [C] along axis 1 of [B, C, ...]
        self.params = [g.op("Reshape", p, wide) if len(p.shape) else p for p in params]

    def run(self, states, rest, state: int) -> tuple[list, list]:
        """(outputs, new states as ``state`` asks for them). ``states``: a value or None."""
        g, every = self.g, state == layers.STATE_ALL
        pairs = zip(states, rest, strict=True)
        start = [self._at(number) if v is None else v for v, number in pairs]
        of_steps, last = self._once(start) if self.steps == 1 else self._scan(start, every)
        dims = [self.steps, *self.dims]
        outputs = g.typed(of_steps[: self.outputs], self.dtype, dims)
        if every:
            return outputs, g.typed(of_steps[self.outputs :], self.real, dims)
        return outputs, g.typed(last, self.real, self.dims)

    def _at(self, number: float):
        """A state, which the file does not hold element by element."""
        value = self.g.ir.tensor([number], dtype=self.real)
        return self.g.op("ConstantOfShape", self.shape, value=value)

    def _once(self, start) -> tuple[list, list]:
        """(what every step gives, the states behind the last)."""
        g = self.g
        inputs = [t if self.static else g.op("Squeeze", t, [0]) for t in self.inputs]
        results = self._step(g, inputs, start)
        return [g.op("Unsqueeze", r, [0]) for r in results], results[self.outputs :]

    def _scan(self, start, every: bool) -> tuple[list, list]:
        """The same; the states of every step are among what it gives where ``every``."""
        g, body, inputs = self.g, _Graph(), self.inputs
        if self.static:
            over = g.op("Concat", g.constant([self.steps]), self.shape, axis=0)
            inputs = [g.op("Expand", t, over) for t in inputs]
        now = [g.ir.val(f"x{k}", t.dtype, self.dims) for k, t in enumerate(inputs)]
        before = [g.ir.val(f"v{k}", self.real, self.dims) for k in range(len(start))]
        results = self._step(body, now, before)
        after = results[self.outputs :]
        kept = [body.op("Identity", v) for v in after] if every else []
        outputs = [*after, *results[: self.outputs], *body.typed(kept, self.real, self.dims)]
        graph = g.ir.Graph([*before, *now], outputs, nodes=body.nodes, name="step")
        made = g.many(
            len(outputs), "Scan", *start, *inputs, body=graph, num_scan_inputs=len(inputs)
        )
        return made[len(start) :], made[: len(start)]

    def _step(self, g: _Graph, inputs, states) -> list:
        """Outputs and new states of one timestep."""
        real = self.real
        leaves = {"input": [g.cast(t, real) for t in inputs], "state": states}
        leaves["param"] = self.params
        values, wide = [], []  # wide: as wide as the layer, which is what its results must be
        for op, args, number in self.program.nodes:
            given = [values[a] for a in args]
            if op in leaves:
                values.append(leaves[op][int(number)])
            elif op == "const":
                values.append(g.constant(number, real))
            elif op == "spike":
                fired = g.op("GreaterOrEqual", *given, g.constant(0.0, real))
                values.append(g.op("Cast", fired, to=real))
            elif op == "ne":
                values.append(g.op("Not", g.op("Equal", *given)))
            else:
                values.append(g.op(_OPERATORS[op], *given))
            wide.append(op in ("input", "state") or any(wide[a] for a in args))
        results = []
        for k, place in enumerate(self.program.results):
            value = values[place] if wide[place] else g.op("Add", self._at(0.0), values[place])
            dtype = self.dtype if k < self.outputs else real
            # Each a value of its own: an input may be given on as it is.
            result = g.op("Identity", value) if dtype == real else g.op("Cast", value, to=dtype)
            results += g.typed([result], dtype, self.dims)
        return results


@neuron()
def _tuned(x, v, *, rate, divide, v_threshold, v_reset, decay_input):
    """The step of the tuned kernels: a hard reset chooses, so that of H = inf V is r, too."""
    h = charge(x, v, 0.0 if v_reset is None else v_reset, rate, divide, decay_input)
    s = spike(h - v_threshold)
    return s, h - s * v_threshold if v_reset is None else torch.where(s > 0, v_reset, h)


def _lif(x, v0, rate, steps, choices, numbers, backend, state, keep):
    return _lif_of(_Graph(), x, x.dtype, v0, rate, steps, choices, numbers, state)


def _lif_of(g: _Graph, x, dtype, v0, rate, steps, choices, numbers, state):
    layer = LifLayer.unpack(choices, numbers)
    by = math.inf if layer.charge == specs.INTEGRATE else layer.rate
    step = _tuned.listing(
        rate=by if rate is None else torch.empty(()), divide=layer.divide,
        v_threshold=layer.theta, v_reset=layer.reset if layer.hard else None,
        decay_input=layer.charge == specs.DECAY_INPUT,
    ).step  # fmt: skip
    params = [] if rate is None else [rate]  # as it is: nothing is computed of it beforehand
    neurons = _Neurons(g, step.forward, 1, [x], params, layer.static, steps, dtype)
    outputs, after = neurons.run([v0], [layer.reset if layer.hard else 0.0], state)
    return g.done(*outputs, *after, g.constant([]))


def _norm_lif(y, residual, stats, bias, v0, rate, steps, choices, numbers, backend, state, keep):
    g = _Graph()
    real = _state_dtype(g, y)
    mean, scale = (
        g.op("Gather", stats, g.constant(row), axis=0) for row in (specs.MEAN, specs.SCALE)
    )
    static = LifLayer.unpack(choices, numbers).static
    rank = len(y.shape) - (1 if static else 2)
    x = _normalise(g, g.cast(y, real), mean, scale, bias, rank)
    if residual is not None:
        x = g.op("Add", x, g.cast(residual, real))
    x.dtype, x.shape = real, y.shape
    return _lif_of(g, x, y.dtype, v0, rate, steps, choices, numbers, state)


def _normalise(g: _Graph, y, mean, scale, bias, rank: int):
    """(y - mean) scale + bias, of [C] rows along the first of the last ``rank`` axes of y."""
    mean, scale, bias = (g.op("Reshape", p, [-1, *[1] * (rank - 1)]) for p in (mean, scale, bias))
    return g.op("Add", g.op("Mul", g.op("Sub", y, mean), scale), bias)


def _scale(g: _Graph, var, weight, eps: float, real) -> tuple:
    """(1 / sqrt(var + eps), weight times that)."""
    root = g.op("Sqrt", g.op("Add", g.cast(var, real), g.constant(eps, real)))
    inverse = g.op("Div", g.constant(1.0, real), root)
    return inverse, inverse if weight is None else g.op("Mul", g.cast(weight, real), inverse)


def _norm_prepare(mean, var, weight, eps, backend):
    g = _Graph()
    rows = mean, var, *_scale(g, var, weight, eps, _state_dtype(g, mean))
    return g.done(g.op("Concat", *(g.op("Unsqueeze", row, [0]) for row in rows), axis=0))


def _batch_norm(x, weight, bias, mean, var, momentum, eps):
    g = _Graph()
    real = _state_dtype(g, x)
    _, scale = _scale(g, var, weight, eps, real)
    bias = g.constant([0.0], real) if bias is None else g.cast(bias, real)
    y = _normalise(g, g.cast(x, real), g.cast(mean, real), scale, bias, len(x.shape) - 1)
    nothing = g.constant([], real)  # statistics of the batch
    return g.done(*g.typed([g.op("Cast", y, to=x.dtype)], x.dtype, x.shape), nothing, nothing)


class _Many(list):
    """Several values where the exporter names each value."""

    name = None

    def producer(self):
        return None


def _neuron(inputs, states, params, text, steps, choices, numbers, backend, state, keep):
    g, step = _Graph(), Step.unpack(text)
    (_, static), (_, _, *rest) = choices, numbers
    neurons = _Neurons(
        g, step.forward, step.outputs, list(inputs), params, bool(static), steps, inputs[0].dtype
    )
    outputs, after = neurons.run(states or [None] * step.states, rest, state)
    made = g.done(*outputs, *after, g.constant([]))
    return _Many(made[: len(outputs)]), _Many(made[len(outputs) : -1]), made[-1]
