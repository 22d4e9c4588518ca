"""From a function of one timestep to its program: the function runs twice, on a few numbers of no
meaning, and each operation of PyTorch that it calls is written down."""

import functools
import threading
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from snnfast.program.ir import Builder, Program

_TRIED = (((2, 5, 3), 0.25), ((4, 7, 2, 6), 0.75))
"""The shapes and values that a step is tried on: one whose program depends on them is refused."""
_REFUSED = (
    (
        "mm bmm addmm baddbmm mv dot convolution einsum",
        "a matrix product ({}); put it in front of the neuron",
    ),
    (
        "view _unsafe_view reshape expand permute transpose t unsqueeze squeeze select slice cat "
        "stack index roll repeat gather",
        "a change of shape or a matrix product ({}); a step sees one neuron, and parameters [] or "
        "[C] broadcast by themselves",
    ),
    (
        "sum mean amax amin max min any all prod norm var std argmax cumsum softmax _softmax",
        "a reduction over neurons ({}); a step sees one neuron, and chooses with torch.where",
    ),
    (
        "_local_scalar_dense is_nonzero",
        "a branch on, or a number of, a tensor's values ({}); use torch.where",
    ),
    ("heaviside round floor ceil trunc", "{}, whose gradient is 0; use snnfast.spike"),
)
_HAS = (
    "+ - * /, neg, abs, minimum, maximum, clamp, relu, comparisons, and/or/not, where, exp, log, "
    "sqrt, rsqrt, tanh, sigmoid, pow by a constant, detach, snnfast.spike"
)


class _Active(threading.local):
    recorder = None


_active = _Active()


def outside_of_transforms():
    """A context in which no transform of torch.func that is active sees what is computed."""
    if torch._C._functorch.maybe_current_level() is None:
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


@contextmanager
def in_no_mode():
    """Out of whatever mode or transform the caller is in, gradients on, and what is made is on the
    CPU."""
    # Only where there is one: what disables them imports the compiler.
    modes = _disable_current_modes if torch._C._len_torch_dispatch_stack() else nullcontext
    with (
        outside_of_transforms(), modes(), torch.inference_mode(False), torch.enable_grad(),
        torch.device("cpu"),
    ):  # fmt: skip
        with _own_saved_tensors():
            yield


def _own_saved_tensors():
    """What autograd saves in here is kept from the hooks of the caller, such as a checkpoint's,
    which counts the tensors of forward and of its second run, where nothing is traced any more."""
    if torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is not None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def recording():
    """The recorder of the trace that runs now in this thread, or None."""
    return _active.recorder


def trace(name: str, function, inputs: int, states: int, params: tuple[str, ...], options: dict):
    """(program, outputs): the program of ``function(*inputs, *states, **params, **options)``, whose
    results are its outputs, then its new states.

    ``params`` are tensors to the program, ``options`` what stays as it is. Raises ValueError and
    TypeError for a step that is not elementwise or gives something else than it must.
    """
    first, second = (
        functools.partial(_traced, name, function, inputs, states, params, options, *tried)
        for tried in _TRIED
    )
    program, outputs = first()
    refused = ValueError(f"{name}: a step must not depend on the shape or the values of x")
    try:
        again, as_many = second()
    except Exception as error:
        raise refused from error
    if program.pack() != again.pack() or outputs != as_many:  # as text, in which NaN is NaN
        raise refused
    return program, outputs


def _traced(name, function, inputs, states, params, options, shape, value) -> tuple[Program, int]:
    recorder = _Recorder(name, shape)

    def leaf(kind, which, shape):
        t = torch.full(shape, value, dtype=torch.float32, device="cpu", requires_grad=True)
        t = t.clone()  # not a leaf of autograd, which refuses what is in place there
        return recorder.knows(t, recorder.builder.add(kind, number=which))

    with in_no_mode():
        tensors = [leaf("input", k, shape) for k in range(inputs)]
        tensors += [leaf("state", k, shape) for k in range(states)]
        named = {key: leaf("param", k, ()) for k, key in enumerate(params)}
        before, _active.recorder = _active.recorder, recorder
        try:
            with recorder:
                results = function(*tensors, **named, **options)
        except IndexError as error:
            raise ValueError(
                f"{name}: a step must not index its arguments ({error}); it sees one neuron, and "
                "parameters [] or [C] broadcast by themselves"
            ) from error
        except RuntimeError as error:
            if "Boolean value of Tensor" in str(error):
                recorder.refuse("a branch on a tensor's values; use torch.where")
            raise
        finally:
            _active.recorder = before
    results = results if isinstance(results, (tuple, list)) else (results,)
    outputs = len(results) - states
    if outputs < 1:
        raise ValueError(
            f"{name}: a step must return its outputs and then {states} new states, got "
            f"{len(results)} values"
        )
    if any(t._backward_hooks for t in recorder.alive):
        recorder.refuse("a hook on a tensor; a gradient of your own is a Surrogate's")
    _refuse_own_gradients(name, results)
    places = []
    for k, result in enumerate(results):
        what = f"output {k}" if k < outputs else f"state {k - outputs}"
        places.append(recorder.result(what, result, shape))
    return recorder.builder.program(places), outputs


class _Recorder(TorchDispatchMode):
    def __init__(self, name: str, shape):
        super().__init__()
        self.name, self.shape = name, shape
        self.builder = Builder()
        self._places: dict[int, int] = {}
        self.alive: list[Tensor] = []  # or a later tensor might have the id of an earlier one

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler at the first operation, 2 s

    def knows(self, t: Tensor, place: int) -> Tensor:
        self._places[id(t)] = place
        self.alive.append(t)
        return t

    def refuse(self, what: str) -> None:
        raise ValueError(f"{self.name}: a step must not hold {what}")

    def place(self, value) -> int:
        """The place of a tensor or number."""
        if isinstance(value, (bool, int, float)):
            return self.builder.constant(value)
        if not isinstance(value, Tensor):
            self.refuse(f"a {type(value).__name__} in arithmetic")
        if id(value) in self._places:
            return self._places[id(value)]
        if value.dim() or value.requires_grad:
            self.refuse(
                f"a tensor {list(value.shape)} from outside; hand it in as a keyword parameter"
            )
        with torch._C._DisableTorchDispatch():
            return self.builder.constant(value.item())

    def real(self, value) -> int:
        """The same as a number: 1 and 0 for a truth value."""
        place = self.place(value)
        if self.builder.is_truth(place):
            one, zero = self.builder.constant(1.0), self.builder.constant(0.0)
            return self.builder.add("where", place, one, zero)
        return place

    def truth(self, value) -> int:
        return self.as_truth(self.place(value))

    def as_truth(self, place: int) -> int:
        if self.builder.is_truth(place):
            return place
        return self.builder.add("ne", place, self.builder.constant(0.0))

    def without_gradient(self, place: int) -> int:
        """A value as it is in ``no_grad``."""
        if torch.is_grad_enabled() or self.builder.is_truth(place):
            return place
        return self.builder.add("detach", place)

    def result(self, what: str, t, shape) -> int:
        if isinstance(t, (bool, int, float)):
            return self.builder.constant(t)
        if not isinstance(t, Tensor):
            raise TypeError(f"{self.name}: {what} must be a tensor, got {type(t).__name__}")
        if t.dtype != torch.float32:
            dtype = str(t.dtype).removeprefix("torch.")
            raise TypeError(f"{self.name}: {what} must keep x's dtype, got {dtype}")
        if t.shape not in (shape, ()):
            raise ValueError(f"{self.name}: {what} must keep x's shape, got another one")
        return self.place(t)

    def spike(self, u: Tensor) -> Tensor:
        """What ``snnfast.spike`` is while its step is traced."""
        place = self.builder.add("spike", self.real(u))
        with torch._C._DisableTorchDispatch():
            s = u.clone()  # behind u in autograd's graph
        return self.knows(s, self.without_gradient(place))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        op = func._schema.name.removeprefix("aten::")
        if op in ("_local_scalar_dense", "is_nonzero"):
            self._refuse_operation(func, op)
        for value in args:
            if isinstance(value, Tensor) and id(value) not in self._places:
                self.place(value)  # refused here, before torch finds that it does not fit
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        if op in _ALIASES:
            return self.knows(out, self.without_gradient(self.place(args[0])))
        write = _OPERATIONS.get(op)
        if write is None:
            self._refuse_operation(func, op)
        if out.dtype not in (torch.float32, torch.bool):
            dtype = str(out.dtype).removeprefix("torch.")
            self.refuse(f"a tensor of {dtype}; its numbers are of the state's dtype")
        if out.shape not in (self.shape, ()):
            self.refuse(f"a tensor {list(out.shape)}; a step sees one neuron")
        place = write(self, args, kwargs)
        if out.dtype == torch.bool:  # of a sum of truth values, too
            place = self.as_truth(place)
        return self.knows(out, self.without_gradient(place))

    def _refuse_operation(self, func, op: str) -> None:
        if func._schema.is_mutable:
            self.refuse(f"an operation in place ({op}); write v = v + ... instead of v += ...")
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refuse("randomness; draw it outside and hand it in as an input")
        for names, message in _REFUSED:
            if op in names.split():
                self.refuse(message.format(op))
        self.refuse(f"{op}; what may stand in it is {_HAS}")


def _refuse_own_gradients(name: str, results) -> None:
    """An autograd.Function in a step has a gradient that no program knows of."""
    seen, left = set(), [t.grad_fn for t in results if isinstance(t, Tensor)]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            kind = type(node).__name__.removesuffix("Backward")
            raise ValueError(
                f"{name}: a step must not hold an autograd.Function ({kind}); use snnfast.spike, "
                "and a subclass of snnfast.surrogate.Surrogate for a gradient of your own"
            )
        left += [following for following, _ in node.next_functions]


_ALIASES = {"alias", "clone", "contiguous", "lift_fresh", "lift_fresh_copy", "positive"}


def _binary(op):
    def write(r, args, kwargs):
        alpha = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
        if alpha != 1 or kwargs.get("rounding_mode") is not None:
            r.refuse("alpha= or rounding_mode=; write the product, or no rounding")
        return r.builder.add(op, r.real(args[0]), r.real(args[1]))

    return write


def _unary(op):
    return lambda r, args, kwargs: r.builder.add(op, r.real(args[0]))


def _compare(op):
    return lambda r, args, kwargs: r.builder.add(op, r.real(args[0]), r.real(args[1]))


def _logic(op):
    return lambda r, args, kwargs: r.builder.add(op, *map(r.truth, args))


def _constant(number=None, at=1):
    """A tensor filled with ``number``, or with the argument at a place."""
    return lambda r, args, kwargs: r.builder.constant(args[at] if number is None else number)


def _rsub(r, args, kwargs):
    return _binary("sub")(r, (args[1], args[0], *args[2:]), kwargs)


def _where(r, args, kwargs):
    return r.builder.add("where", r.truth(args[0]), r.real(args[1]), r.real(args[2]))


def _masked_fill(r, args, kwargs):
    return r.builder.add("where", r.truth(args[1]), r.real(args[2]), r.real(args[0]))


def _clamp(r, args, kwargs):
    """At a bound the gradient passes."""
    x, *bounds = args
    low = kwargs.get("min", bounds[0] if bounds else None)
    high = kwargs.get("max", bounds[1] if len(bounds) > 1 else None)
    return _bounded(r, r.real(x), (low, "lt"), (high, "gt"))


def _hardtanh(r, args, kwargs):
    """At a bound it does not."""
    x, low, high = (*args, *(-1.0, 1.0)[len(args) - 1 :])
    return _bounded(r, r.real(x), (low, "le"), (high, "ge"))


def _bounded(r, x: int, *bounds) -> int:
    """A NaN stays, of a bound too, and has no gradient; nor has a lower bound that is no lower."""
    add, y = r.builder.add, x
    limits = [(r.real(bound), outside) for bound, outside in bounds if bound is not None]
    varying = [limit for limit, _ in limits if r.builder.nodes[limit].op != "const"]
    if len(varying) == 2:
        low, high = varying
        kept = add("where", add("lt", low, high), low, add("detach", low))
        limits[0] = kept, limits[0][1]
    for limit, outside in limits:
        y = add("where", add(outside, y, limit), limit, y)
    for place in (*varying, x):
        y = add("where", add("ne", place, place), add("detach", place), y)
    return y


def _relu(r, args, kwargs):
    x, zero = r.real(args[0]), r.builder.constant(0.0)
    return r.builder.add("where", r.builder.add("le", x, zero), zero, x)


def _sign(r, args, kwargs):
    x, zero = r.real(args[0]), r.builder.constant(0.0)
    below = r.builder.add("where", r.builder.add("lt", x, zero), r.builder.constant(-1.0), zero)
    return r.builder.add("where", r.builder.add("gt", x, zero), r.builder.constant(1.0), below)


def _inverse(r, place: int) -> int:
    return r.builder.add("div", r.builder.constant(1.0), place)


def _pow(r, args, kwargs):
    if not isinstance(args[1], (int, float)):
        r.refuse("a power that is a tensor; write torch.exp(y * torch.log(x))")
    return _power(r, r.real(args[0]), float(args[1]))


def _power(r, x: int, exponent: float) -> int:
    """As PyTorch has the small ones."""
    add = r.builder.add
    if exponent == 0.0:
        return r.builder.constant(1.0)
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return add("mul", x, x)
    if exponent == 3.0:
        return add("mul", add("mul", x, x), x)
    if exponent == 0.5:
        return add("sqrt", x)
    if exponent in (-0.5, -1.0, -2.0):
        return _inverse(r, _power(r, x, -exponent))
    return add("pow", x, r.builder.constant(exponent))


def _to(r, args, kwargs):
    if kwargs.get("device") is not None and kwargs["device"].type != "cpu":
        r.refuse("a move to another device")
    return r.place(args[0]) if kwargs.get("dtype") == torch.bool else r.real(args[0])


_OPERATIONS = {
    "add": _binary("add"), "sub": _binary("sub"), "mul": _binary("mul"), "div": _binary("div"),
    "rsub": _rsub, "minimum": _binary("min"), "maximum": _binary("max"),
    "neg": _unary("neg"), "abs": _unary("abs"), "exp": _unary("exp"), "log": _unary("log"),
    "sqrt": _unary("sqrt"), "tanh": _unary("tanh"), "sigmoid": _unary("sigmoid"),
    "rsqrt": lambda r, args, kwargs: _power(r, r.real(args[0]), -0.5),
    "reciprocal": lambda r, args, kwargs: _power(r, r.real(args[0]), -1.0),
    "pow": _pow, "clamp": _clamp, "clamp_min": _clamp, "hardtanh": _hardtanh,
    "clamp_max": lambda r, args, kwargs: _clamp(r, (args[0], None, args[1]), {}),
    "relu": _relu, "sign": _sign, "sgn": _sign,
    "ge": _compare("ge"), "gt": _compare("gt"), "le": _compare("le"), "lt": _compare("lt"),
    "eq": _compare("eq"), "ne": _compare("ne"),
    "logical_and": _logic("and"), "logical_or": _logic("or"), "logical_not": _logic("not"),
    "bitwise_and": _logic("and"), "bitwise_or": _logic("or"), "bitwise_not": _logic("not"),
    "__and__": _logic("and"), "__or__": _logic("or"),
    "where": _where, "masked_fill": _masked_fill, "_to_copy": _to, "detach": _unary("detach"),
    "zeros_like": _constant(0.0), "ones_like": _constant(1.0), "full_like": _constant(),
    "zeros": _constant(0.0), "ones": _constant(1.0), "full": _constant(),
    "new_zeros": _constant(0.0), "new_ones": _constant(1.0), "new_full": _constant(at=2),
    "scalar_tensor": _constant(at=0),
}  # fmt: skip
