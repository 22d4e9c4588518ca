"""The nodes of both namespaces: the three hooks of a step, and all steps in one launch where no
subclass has another one. A namespace adds its ``MemoryModule`` and who calls what."""

import functools
import math
import warnings

import torch
from torch import Tensor, nn

from snnfast.interop.spikingjelly import _engine
from snnfast.interop.spikingjelly import _layers as _layers
from snnfast.interop.spikingjelly.surrogate import Sigmoid
from snnfast.ops.validation import check_bool, check_number

_PACKAGE = __name__.rpartition(".")[0]
V12, V14 = _engine.V12, _engine.V14

STEP = ("neuronal_charge", "neuronal_fire", "neuronal_reset", "jit_hard_reset", "jit_soft_reset")
STEPS = (*STEP, "v_float_to_tensor", "single_step_forward")
_fusible: dict = {}
"""{(a class, hooks): whether they are all ours}"""


def is_ours(node, hooks: tuple[str, ...]) -> bool:
    """Whether neither the node nor a subclass of ours has such a hook of its own."""
    cls = type(node)
    ours = _fusible.get((cls, hooks))
    if ours is None:
        ours = _fusible[cls, hooks] = all(_is_from_here(cls, hook) for hook in hooks)
    return ours and node.__dict__.keys().isdisjoint(hooks)


def _is_from_here(cls, hook: str) -> bool:
    owner = next((c for c in cls.__mro__ if hook in vars(c)), None)
    return owner is None or owner.__module__.startswith(_PACKAGE)


class Node:
    """What a node is to its subclasses: ``v``, ``v_threshold``, ``v_reset``, ``detach_reset``,
    ``surrogate_function``; and a step::

        neuronal_charge(x)       V becomes H; a subclass of a BaseNode has to define it
        spike = neuronal_fire()  1 where H >= v_threshold
        neuronal_reset(spike)    V becomes v_reset, or H - v_threshold where that is None

    A subclass may override each of them, in training and in evaluation alike; its steps are then
    taken one after the other. ``v`` is a number before the first step and after ``reset``.
    """

    VERSION: _engine.Version
    CHARGE: "_engine.Charge | None" = None
    """What ``neuronal_charge`` is to the engine."""

    def _begin(self, v_threshold, v_reset, surrogate_function, detach_reset) -> tuple:
        """The arguments that all nodes have, checked: (v_threshold, v_reset)."""
        who = type(self).__name__
        v_threshold = check_number(who, "v_threshold", v_threshold, finite=False)
        if v_reset is not None:
            hint = " (hard reset) or None (soft)"
            v_reset = check_number(who, "v_reset", v_reset, hint=hint)
        check_bool(who, "detach_reset", detach_reset)
        super().__init__()
        self.register_memory("v", 0.0 if v_reset is None else v_reset)
        self.detach_reset = detach_reset
        self.surrogate_function = Sigmoid() if surrogate_function is None else surrogate_function
        return v_threshold, v_reset

    def v_float_to_tensor(self, x: Tensor) -> None:
        if isinstance(self.v, float):
            self.v = torch.full_like(x.data, self.v)

    def neuronal_charge(self, x: Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define neuronal_charge(x)")

    def neuronal_fire(self) -> Tensor:
        return self.surrogate_function(self.v - self.v_threshold)

    def neuronal_reset(self, spike: Tensor) -> None:
        spike = spike.detach() if self.detach_reset else spike
        if self.v_reset is None:
            self.v = self.jit_soft_reset(self.v, spike, self.v_threshold)
        else:
            self.v = self.jit_hard_reset(self.v, spike, self.v_reset)

    @staticmethod
    def jit_hard_reset(v, spike, v_reset):
        return (1.0 - spike) * v + spike * v_reset

    @staticmethod
    def jit_soft_reset(v, spike, v_threshold):
        return v - spike * v_threshold

    def _by_hooks(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        spike = self.neuronal_fire()
        self.neuronal_reset(spike)
        return spike

    def _by_engine(self, x_seq: Tensor, hooks: tuple[str, ...], every: bool):
        """(spikes, V after each step or None) of x [T, ...], or None where the steps are not
        LIF's, and the hooks have to be called."""
        if self.CHARGE is None or not is_ours(self, hooks):
            return None
        try:
            return _engine.multi_step(self, x_seq, self.VERSION, self.CHARGE, every)
        except _engine.Unlike as why:
            _say(type(self).__name__, str(why))
            return None

    def _takes(self) -> tuple[bool, bool]:
        """(whether a call takes all timesteps, whether it leaves V after each)."""
        raise NotImplementedError

    def _behind_refusal(self):  # these three: see snnfast.nn.peers
        own = self.CHARGE is None or not is_ours(self, (*STEPS, "multi_step_forward", "forward"))
        return "its steps are its own" if own else None

    def _behind_steps(self, x: Tensor) -> Tensor:
        return x if self._takes()[0] else x.unsqueeze(0)

    def _behind(self, x: Tensor, behind, reads):
        how = self._takes()[1], _engine.Behind(behind, reads)
        try:
            s, v_seq = _engine.multi_step(self, x, self.VERSION, self.CHARGE, *how)
        except _engine.Unlike:
            return None  # its own forward says why
        if v_seq is not None:
            self.v_seq = v_seq
        return s

    def extra_repr(self):
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"detach_reset={self.detach_reset}"
        )


@functools.cache
def _say(who: str, why: str) -> None:
    warnings.warn(f"{who}: its steps run one after the other: {why}", stacklevel=5)


class Integrates:
    """H = V + X."""

    CHARGE = staticmethod(_engine.integrates)

    def neuronal_charge(self, x):
        self.v = self.v + x


class _Leaks:
    def _leak(self, x, divided):
        """``divided`` by tau, however that is done; 1 - 1/tau is what it makes of a one taken
        away."""
        v, r = self.v, self.v_reset
        if self.decay_input:
            return v + divided(x - v if not r else x - (v - r))
        if not r:
            return v * self._kept() + x
        return v - divided(v - r) + x


class Leaks(_Leaks):
    """H = V + (X - (V - r)) / tau; without ``decay_input`` V (1 - 1/tau) + X, and
    V - (V - r)/tau + X where r = v_reset is neither None nor 0."""

    CHARGE = staticmethod(_engine.leaks)

    def _set_tau(self, tau, decay_input) -> None:
        self.tau = _check_tau(self, "tau", tau)
        self.decay_input = decay_input

    def neuronal_charge(self, x):
        self.v = self._leak(x, lambda d: d / self.tau)

    def _kept(self):
        return 1.0 - 1.0 / self.tau

    def extra_repr(self):
        return f"{super().extra_repr()}, tau={self.tau}"


class Learns(_Leaks):
    """As LIF, with 1/tau = sigmoid(w) for a learned w []."""

    CHARGE = staticmethod(_engine.learns)

    def _set_tau(self, init_tau, decay_input) -> None:
        self.decay_input = decay_input
        self.w = nn.Parameter(
            torch.as_tensor(-math.log(_check_tau(self, "init_tau", init_tau) - 1.0))
        )

    def neuronal_charge(self, x):
        rate = self.w.sigmoid()
        self.v = self._leak(x, lambda d: d * rate)

    def _kept(self):
        return 1.0 - self.w.sigmoid()

    def extra_repr(self):
        return f"{super().extra_repr()}, tau={1.0 / self.w.detach().sigmoid()}"


class Grows:
    """H = V + (X + v_rest - V + delta_T exp((V - theta_rh) / delta_T)) / tau."""

    def _set_growth(self, tau, delta_T, theta_rh, v_rest) -> None:
        self.tau = _check_tau(self, "tau", tau)
        self.delta_T, self.theta_rh, self.v_rest = delta_T, theta_rh, v_rest

    def neuronal_charge(self, x):
        v = torch.as_tensor(self.v, device=x.device)
        growth = self.delta_T * torch.exp((v - self.theta_rh) / self.delta_T)
        self.v = v + (x + self.v_rest - v + growth) / self.tau

    def extra_repr(self):
        own = f"tau={self.tau}, delta_T={self.delta_T}, theta_rh={self.theta_rh}"
        return f"{super().extra_repr()}, {own}"


class Squares:
    """H = V + (X + a0 (V - v_rest)(V - v_c)) / tau."""

    def _set_square(self, tau, v_c, a0, v_rest) -> None:
        self.tau = _check_tau(self, "tau", tau)
        self.v_c, self.a0, self.v_rest = v_c, a0, v_rest

    def neuronal_charge(self, x):
        v = self.v
        self.v = v + (x + self.a0 * (v - self.v_rest) * (v - self.v_c)) / self.tau

    def extra_repr(self):
        own = f"tau={self.tau}, v_c={self.v_c}, a0={self.a0}, v_rest={self.v_rest}"
        return f"{super().extra_repr()}, {own}"


def _check_tau(node, name: str, value) -> float:
    who = type(node).__name__
    value = check_number(who, name, value)
    if not value > 1.0:
        raise ValueError(f"{who}: {name} must be > 1, got {value}")
    return value
