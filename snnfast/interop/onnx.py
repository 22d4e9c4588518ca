"""Models as ONNX, by standard operators: the neurons are a Scan over time of their step.

torch.onnx translates what the layers of torch are. Here stands what the ops of snnfast are, each
operation of a neuron's program one operator of ONNX, in the same order; and what a batch norm is:
Sub, Mul and Add, for runtimes fold a BatchNormalization into the convolution before it, which moves
potentials by an ulp, and spikes with them.
"""

import logging
import math
import os
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnfast.backends import spec as specs
from snnfast.backends.spec import LifLayer, Step
from snnfast.interop.packages import require
from snnfast.interop.pt2 import exported
from snnfast.ops import layer as layers
from snnfast.ops.lif_definition import lif as definition
from snnfast.program.ir import Program

LARGEST = 2**31 - 2**24
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
        model: in evaluation mode; layers of torch and of ``snnfast.nn``.
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
        torch.onnx.export(
            program,
            f=os.fspath(path),
            input_names=[*_names("x", inputs), *rest],
            output_names=[*_names("y", outputs), *(f"{name}.next" for name in rest)],
            custom_translation_table=_table(),
            external_data=weights > LARGEST,
            dynamo=True,
            verbose=False,
        )
    return rest


@contextmanager
def _quiet():
    """Without what torch.onnx says of packages that it does not need and of torch's own code."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
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
        torch.ops.aten.batch_norm.default: _batch_norm,
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
        """Of numbers: int64, or of ``dtype``."""
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


class _Layer(NamedTuple):
    """A layer of neurons on its way."""

    program: Program
    inputs: list
    states: list
    """A value or None."""
    params: list
    rest: tuple[float, ...]
    steps: int
    static: bool
    outputs: int
    dtype: object
    """Of the outputs."""


def _run(g: _Graph, layer: _Layer, state: int):
    """(outputs, new states as ``state`` asks for them)."""
    x = layer.inputs[0]
    real, rank = _state_dtype(g, x), len(x.shape) - (not layer.static)
    shape = g.op("Shape", x, start=0 if layer.static else 1)
    start = [
        g.op("Expand", g.constant(number, real), shape) if v is None else v
        for v, number in zip(layer.states, layer.rest, strict=True)
    ]
    dims = list(x.shape)[not layer.static :]
    wide = [1] * max(rank - 2, 0)
    params = [g.op("Reshape", p, [-1, *wide]) if len(p.shape) else p for p in layer.params]
    count, inputs = layer.outputs, layer.inputs
    every = state == layers.STATE_ALL
    if layer.steps == 1:
        inputs = [t if layer.static else g.op("Squeeze", t, [0]) for t in inputs]
        last = _step(g, layer, inputs, start, params, shape, real)
        made = [g.op("Unsqueeze", r, [0]) for r in (last if every else last[:count])]
        last = last[count:]
    else:
        if layer.static:
            over = g.op("Concat", g.constant([layer.steps]), shape, axis=0)
            inputs = [g.op("Expand", t, over) for t in inputs]
        body = _Graph()
        scanned = [_argument(g, f"x{k}", t.dtype, dims) for k, t in enumerate(inputs)]
        passed = [_argument(g, f"v{k}", real, dims) for k in range(len(start))]
        results = _step(body, layer, scanned, passed, params, shape, real)
        if every:
            results += [body.op("Identity", v) for v in results[count:]]
            body.typed(results[-len(start) :], real, dims)
        after = slice(count, count + len(start))
        outputs = [*results[after], *results[:count], *results[after.stop :]]
        graph = g.ir.Graph([*passed, *scanned], outputs, nodes=body.nodes, name="step")
        made = g.many(
            len(outputs), "Scan", *start, *inputs, body=graph, num_scan_inputs=len(inputs)
        )
        last, made = made[: len(start)], made[len(start) :]
    of_steps = [layer.steps, *dims]
    outputs, states = g.typed(made[:count], layer.dtype, of_steps), made[count:]
    if every:
        return outputs, g.typed(states, real, of_steps)
    return outputs, g.typed(last, real, dims)


def _argument(g: _Graph, name: str, dtype, dims):
    return g.ir.val(name, dtype=dtype, shape=dims)


def _step(g: _Graph, layer: _Layer, inputs, states, params, shape, real) -> list:
    dims = list(layer.inputs[0].shape)[not layer.static :]
    """Outputs and new states of one timestep. What depends on no neuron is made as wide as one."""
    leaves = {"input": [g.cast(t, real) for t in inputs], "state": states, "param": params}
    values, wide = [], []
    for op, args, number in layer.program.nodes:
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
    for k, place in enumerate(layer.program.results):
        value = values[place] if wide[place] else g.op("Expand", values[place], shape)
        dtype = layer.dtype if k < layer.outputs else real
        # Each a value of its own: an input may be given on as it is.
        result = g.op("Identity", value) if dtype == real else g.op("Cast", value, to=dtype)
        results += g.typed([result], dtype, dims)
    return results


def _lif(x, v0, rate, steps, choices, numbers, backend, state, keep):
    g = _Graph()
    return _lif_of(g, x, x.dtype, v0, rate, steps, choices, numbers, state)


def _lif_of(g: _Graph, x, dtype, v0, rate, steps, choices, numbers, state):
    layer = LifLayer.unpack(choices, numbers)
    leak = {"tau": math.inf if layer.charge == specs.INTEGRATE else layer.rate}
    if rate is not None:
        leak = {"tau" if layer.divide else "inv_tau": torch.empty(())}
    elif not layer.divide and layer.charge != specs.INTEGRATE:
        leak = {"tau": 1 / layer.rate}  # a power of two
    found = definition.listing(
        **leak, v_threshold=layer.theta, v_reset=layer.reset if layer.hard else None,
        decay_input=layer.charge == specs.DECAY_INPUT,
    )  # fmt: skip
    params = [] if rate is None else [rate]  # as it is: nothing is computed of it beforehand
    steps = steps if layer.static else x.shape[0]
    neurons = _Layer(
        found.step.forward, [x], [v0], params, (layer.reset if layer.hard else 0.0,), steps,
        layer.static, 1, dtype,
    )  # fmt: skip
    outputs, after = _run(g, neurons, state)
    return g.done(*outputs, *after, g.constant([]))


def _norm_lif(y, residual, stats, bias, v0, rate, steps, choices, numbers, backend, state, keep):
    g = _Graph()
    real = _state_dtype(g, y)
    mean, scale = (g.op("Gather", stats, g.constant(row), axis=0) for row in (0, 3))
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


def _inverse_std(g: _Graph, var, eps: float, real):
    root = g.op("Sqrt", g.op("Add", var, g.constant(eps, real)))
    return g.op("Div", g.constant(1.0, real), root)


def _norm_prepare(mean, var, weight, eps, backend):
    g = _Graph()
    real = _state_dtype(g, mean)
    inverse = _inverse_std(g, var, eps, real)
    scale = inverse if weight is None else g.op("Mul", weight, inverse)
    rows = [g.op("Unsqueeze", row, [0]) for row in (mean, var, inverse, scale)]
    return g.done(g.op("Concat", *rows, axis=0))


def _batch_norm(x, weight, bias, mean, var, training, momentum, eps, cudnn):
    g = _Graph()
    real = _state_dtype(g, x)
    inverse = _inverse_std(g, var, eps, real)
    scale = inverse if weight is None else g.op("Mul", g.cast(weight, real), inverse)
    bias = g.constant([0.0], real) if bias is None else g.cast(bias, real)
    y = _normalise(g, g.cast(x, real), mean, scale, bias, len(x.shape) - 1)
    y.dtype = real
    return g.done(g.cast(y, x.dtype))


class _Many(list):
    """Several values where the exporter names each value."""

    name = None

    def producer(self):
        return None


def _neuron(inputs, states, params, text, steps, choices, numbers, backend, state, keep):
    g = _Graph()
    found, (_, static), (_, _, *rest) = Step.unpack(text), choices, numbers
    x = inputs[0]
    steps = steps if static else x.shape[0]
    states = states or [None] * found.states
    layer = _Layer(
        found.forward, list(inputs), list(states), list(params), tuple(rest), steps, bool(static),
        found.outputs, x.dtype,
    )  # fmt: skip
    outputs, after = _run(g, layer, state)
    made = g.done(*outputs, *after, g.constant([]))
    return _Many(made[: len(outputs)]), _Many(made[len(outputs) : -1]), made[-1]
