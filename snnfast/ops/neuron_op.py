"""What a neuron's program is to a backend: the contract (schemas and fakes), the launch, and the
autograd.Function, in that order.

The program goes along as text, so that a traced graph holds all that it runs.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast import reference
from snnfast.backends import checks, layout
from snnfast.backends import spec as specs
from snnfast.backends.spec import NeuronLayer
from snnfast.ops import allocate
from snnfast.ops import layer as layers
from snnfast.ops.direct import is_direct
from snnfast.ops.select import implementation, named
from snnfast.ops.transforms import differentiable, wants_graph
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Program
from snnfast.surrogate import Surrogate

_LAYER = f"str program, SymInt steps, {specs.CHOICES}, str backend"
_TENSORS = "Tensor[] inputs, Tensor?[] states, Tensor[] params"
_library = torch.library.Library("snnfast", "FRAGMENT")
_library.define(
    f"neuron_forward({_TENSORS}, {_LAYER}, int state, bool keep) "
    "-> (Tensor[] outputs, Tensor[] new_states, Tensor borders)",
    tags=layers.TAGS,
)
_library.define(
    f"neuron_backward({_TENSORS}, Tensor borders, Tensor?[] douts, Tensor?[] dstates, {_LAYER}, "
    "bool[] wanted) -> (Tensor[] dinputs, Tensor[] dstates0, Tensor[] dparams)",
    tags=layers.TAGS,
)


class Call(NamedTuple):
    """What a call of a neuron is besides its tensors."""

    layer: NeuronLayer
    state: int
    backend: str
    direct: bool = False
    """Whether forward needs no dispatcher."""
    name: str = "neuron"
    """In messages."""
    surrogate: Surrogate | None = None
    """Where gradients may get a graph."""

    @property
    def packed(self) -> tuple:
        """The arguments of _LAYER."""
        layer = self.layer
        choices = [layer.surrogate, int(layer.static)]
        numbers = [layer.a, layer.b, *layer.rest]
        return layer.step.text, layer.steps, choices, numbers, self.backend


def _layer(inputs, program, steps, choices, numbers, _backend) -> NeuronLayer:
    """The layer behind the dispatcher."""
    (surrogate, static), (a, b, *rest) = choices, numbers
    step = specs.Step.unpack(program)
    layer = NeuronLayer(step, surrogate, bool(static), a, b, tuple(rest))
    # A traced graph has T as a number, which may not be that of the x it is run on.
    return layer.over(steps if static else inputs[0].shape[0])


def _empty_forward(x: Tensor, layer: NeuronLayer, state: int, keep: bool):
    """(outputs, new states, borders or None)."""
    first, steps, step = layers.axis(layer), layer.steps, layer.step
    outputs = [allocate.empty_steps(x, first, [steps], x.dtype) for _ in range(step.outputs)]
    new_states, borders, dtype = [], None, layout.state_dtype(x)
    if state:
        leading = [steps] if state == layers.STATE_ALL else []
        new_states = [allocate.empty_steps(x, first, leading, dtype) for _ in range(step.states)]
    if keep and steps > specs.SEGMENT and step.states:
        kept = specs.segments(steps) - 1
        borders = allocate.empty_steps(x, first, [step.states * kept], dtype)
        borders = borders.unflatten(0, (step.states, kept))
    return outputs, new_states, borders


def _empty_backward(inputs, params, layer: NeuronLayer, wanted):
    """(dinputs, dstates0, dparams), None where they are not wanted."""
    x, step = inputs[0], layer.step
    wants = iter(wanted)
    dinputs = [layers.empty_input(x, layer) if next(wants) else None for _ in inputs]
    state = layout.state_dtype(x)
    first = layers.axis(layer)
    dstates0 = [
        allocate.empty_steps(x, first, [], state) if next(wants) else None
        for _ in range(step.states)
    ]
    return dinputs, dstates0, [torch.empty_like(p) if next(wants) else None for p in params]


def _present(x: Tensor, tensors) -> list[Tensor]:
    return [x.new_empty(0, dtype=layout.state_dtype(x)) if t is None else t for t in tensors]


@torch.library.register_fake("snnfast::neuron_forward", lib=_library)
def _(inputs, states, params, *packed_state_keep):
    *packed, state, keep = packed_state_keep
    layer = _layer(inputs, *packed)
    outputs, new_states, borders = _empty_forward(inputs[0], layer, state, keep)
    return outputs, new_states, *_present(inputs[0], [borders])


@torch.library.register_fake("snnfast::neuron_backward", lib=_library)
def _(inputs, states, params, borders, douts, dstates, *packed_wanted):
    *packed, wanted = packed_wanted
    layer = _layer(inputs, *packed)
    made = _empty_backward(inputs, params, layer, wanted)
    return tuple(_present(inputs[0], part) for part in made)


def _as_launched(inputs, states, params, layer: NeuronLayer):
    """The tensors as kernels read them: all laid out as the first input within a step."""
    first = layers.axis(layer)
    x = layout.with_dense_steps(inputs[0], first)
    inputs = [x, *(layout.like_steps(t, x, first, any_stride=True) for t in inputs[1:])]
    if layer.static:
        inputs = [t.unsqueeze(0).expand(layer.steps, *t.shape) for t in inputs]
    params = [p.contiguous() for p in params]
    channels = next((p.shape[0] for p in params if p.dim()), None)
    if channels is not None:
        checks.axes("x", x, first + 2, "[..., B, C, ...] for a parameter [C]")
        layer = layer._replace(channels=channels, inner=layout.step_strides(x, first)[1])
    return x, inputs, [layout.like_steps(v, x, first) for v in states], params, layer


def _forward(inputs, states, params, layer, kernels, state, keep):
    x = inputs[0]
    if layers.by_sample(x, layer):
        made = outputs, new_states, borders = _empty_forward(x, layer, state, keep)
        for n in range(x.shape[1]):
            own = (_of_sample(tensors, x, n) for tensors in (inputs, states))
            _, *launched, one = _as_launched(*own, params, layer)
            to = (_of_sample(tensors, x, n) for tensors in (outputs, new_states))
            kernels.neuron_forward(one, *launched, *to, layout.of_sample(borders, x, n))
        return made
    x, inputs, states, params, layer = _as_launched(inputs, states, params, layer)
    outputs, new_states, borders = _empty_forward(x, layer, state, keep)
    if outputs[0].numel():
        kernels.neuron_forward(layer, inputs, states, params, outputs, new_states, borders)
    elif state == layers.STATE_LAST:  # T = 0
        for v, v0, rest in zip(new_states, states, layer.rest, strict=True):
            v.copy_(v0) if v0 is not None else v.fill_(rest)
    return outputs, new_states, borders


def _of_sample(tensors, x: Tensor, n: int) -> list[Tensor | None]:
    return [layout.of_sample(t, x, n) for t in tensors]


def _backward(inputs, states, params, borders, douts, dstates, layer, kernels, wanted):
    if layers.by_sample(inputs[0], layer):
        given = (inputs, states, params, borders, douts, dstates)
        return _backward_by_sample(*given, layer, kernels, wanted)
    x, sequences, states, params, layer = _as_launched(inputs, states, params, layer)
    first = layers.axis(layer)
    made = _empty_backward([x] * len(inputs), params, layer, wanted)
    if layer.steps and x.numel():
        if borders is not None and not borders.numel():
            borders = None
        if borders is not None:
            flat = layout.like_steps(borders.flatten(0, 1), x, first)
            borders = flat.unflatten(0, borders.shape[:2])
        douts = [layout.like_steps(t, x, first, any_stride=True) for t in douts]
        dstates = [layout.like_steps(t, x, first) for t in dstates]
        kernels.neuron_backward(layer, sequences, states, params, borders, douts, dstates, *made)
        return made
    dinputs, dstates0, dparams = made
    for t in (*dinputs, *dparams):
        if t is not None:
            t.zero_()
    for t, given in zip(dstates0, dstates, strict=True):
        if t is not None:
            same = given is not None and given.shape == t.shape
            t.copy_(given) if same else t.zero_()
    return made


def _backward_by_sample(inputs, states, params, borders, douts, dstates, layer, kernels, wanted):
    x = inputs[0]
    dinputs, dstates0, dparams = _empty_backward([x] * len(inputs), params, layer, wanted)
    borders = borders if borders is not None and borders.numel() else None
    parts = []
    for n in range(x.shape[1]):
        own = (_of_sample(tensors, x, n) for tensors in (inputs, states))
        first, *launched, one = _as_launched(*own, params, layer)
        of_douts, of_dstates = (_of_sample(tensors, x, n) for tensors in (douts, dstates))
        of_douts = [layout.like_steps(t, first, 1, any_stride=True) for t in of_douts]
        of_dstates = [layout.like_steps(t, first, 1) for t in of_dstates]
        to = (_of_sample(tensors, x, n) for tensors in (dinputs, dstates0))
        parts.append([None if t is None else torch.empty_like(t) for t in dparams])
        kernels.neuron_backward(
            one, *launched, layout.of_sample(borders, x, n), of_douts, of_dstates, *to, parts[-1]
        )
    sums = [None if part[0] is None else layers.summed(part) for part in zip(*parts, strict=True)]
    return dinputs, dstates0, sums


def _plain(tensors) -> list[Tensor | None]:
    """Without lazy negatives, which the dispatcher leaves in lists of which one may be None."""
    return [None if t is None else t.resolve_neg() for t in tensors]


def _forward_op(inputs, states, params, *rest):
    *packed, state, keep = rest
    states = _plain(states)
    layer = _layer(inputs, *packed)
    kernels = named(packed[-1], inputs[0], "neuron_forward")
    outputs, new_states, borders = _forward(inputs, states, params, layer, kernels, state, keep)
    return outputs, new_states, *_present(inputs[0], [borders])


def _backward_op(inputs, states, params, borders, douts, dstates, *rest):
    *packed, wanted = rest
    states, douts, dstates = _plain(states), _plain(douts), _plain(dstates)
    layer = _layer(inputs, *packed)
    kernels = named(packed[-1], inputs[0], "neuron_forward")
    made = _backward(inputs, states, params, borders, douts, dstates, layer, kernels, wanted)
    return tuple(_present(inputs[0], part) for part in made)


for _device in ("CPU", "CUDA"):
    _library.impl("neuron_forward", _forward_op, _device)
    _library.impl("neuron_backward", _backward_op, _device)


def forward(call: Call, inputs, states, params, keep: bool):
    """(outputs, new states, borders) of a checked call."""
    if call.direct:
        kernels = implementation(call.backend).functions
        return _forward(inputs, states, params, call.layer, kernels, call.state, keep)
    op = torch.ops.snnfast.neuron_forward.default
    return op(inputs, states, params, *call.packed, call.state, keep)


class Neuron(torch.autograd.Function):
    """Keeps the inputs, and the states at the borders of segments where T > 8."""

    @staticmethod
    def forward(ctx, call: Call, *tensors):
        step = call.layer.step
        inputs, states, params = parts(step, tensors)
        outputs, new_states, borders = forward(call, inputs, states, params, True)
        borders = layers.nothing(inputs[0].device) if borders is None else borders
        ctx.save_for_backward(*tensors, borders)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return (*outputs, *new_states)

    @staticmethod
    def backward(ctx, *gradients):
        *tensors, borders = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[1:])
        if wants_graph():
            return None, *differentiable(partial(again, ctx.call), tensors, wanted, gradients)
        made = backward(ctx.call, tensors, borders, gradients, wanted)
        return None, *(t if want else None for t, want in zip(made, wanted, strict=True))


def backward(call: Call, tensors, borders, gradients, wanted: list[bool]) -> list[Tensor | None]:
    """The gradients of ``tensors``, inputs, states and parameters, that are ``wanted``, from those
    of the outputs and the states that the call gave."""
    step = call.layer.step
    inputs, states, params = parts(step, tensors)
    douts, dstates = list(gradients[: step.outputs]), list(gradients[step.outputs :])
    dstates += [None] * (step.states - len(dstates))
    others = (t for t in (*tensors[1:], borders, *gradients) if t is not None)
    if is_direct(tensors[0], *others):
        kernels = implementation(call.backend)
        given = (inputs, states, params, borders, douts, dstates)
        made = _backward(*given, call.layer, kernels, wanted)
    else:
        (borders,) = _present(inputs[0], [borders])
        given = (inputs, states, params, borders, douts, dstates)
        made = torch.ops.snnfast.neuron_backward.default(*given, *call.packed, wanted)
    return [t for part in made for t in part]


def again(call: Call, *tensors) -> tuple[Tensor, ...]:
    """The outputs and states of the call in plain PyTorch, by its program."""
    step, state = call.layer.step, call.state
    inputs, states, params = parts(step, tensors)
    x, traced = inputs[0], Program.unpack(step.line)
    shape = x.shape if call.layer.static else x.shape[1:]
    states = [
        x.new_full(shape, rest, dtype=layout.state_dtype(x)) if v is None else v
        for v, rest in zip(states, call.layer.rest, strict=True)
    ]

    def one(*values, **named):
        given = values[: step.inputs], values[step.inputs :], tuple(named.values())
        leaves = dict(zip(("input", "state", "param"), given, strict=True))
        return evaluate(traced, leaves, spike=reference.spike)

    outputs, passed = reference.neuron(
        one, inputs, states, {f"p{k}": p for k, p in enumerate(params)}, outputs=step.outputs,
        surrogate=call.surrogate, timesteps=call.layer.steps if call.layer.static else None,
    )  # fmt: skip
    after = [v[1:] if state == layers.STATE_ALL else v[-1] for v in passed] if state else []
    return (*outputs, *after)


def parts(step: specs.Step, tensors) -> tuple[list, list, list]:
    """Inputs, states and parameters apart."""
    first, second = step.inputs, step.inputs + step.states
    return list(tensors[:first]), list(tensors[first:second]), list(tensors[second:])
