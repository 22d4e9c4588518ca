"""Spiking neurons as modules. Every forward starts from rest, unless inside ``streaming``."""

import math

import torch
from torch import Tensor, nn

from snnfast import surrogate as surrogates
from snnfast.nn import _single_steps
from snnfast.nn.arguments import arguments_of, hint
from snnfast.ops.layer import check_options, check_tau
from snnfast.ops.lif import lif
from snnfast.ops.validation import check_bool, check_int, check_number, state_dtype


class BaseNeuron(nn.Module):
    """What the neurons share: the arguments of ``snnfast.lif`` and the state of a stream."""

    # What belongs to the calls so far, and not to a copy.
    _streaming = False
    _v = None
    _called = None  # in this forward of the streaming model; None: not within one
    _loop = ()

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: "str | surrogates.Surrogate" = "sigmoid",
        return_state: "bool | str" = False,
        backend: str | None = None,
        **unknown,
    ):
        super().__init__()
        who = type(self).__name__
        if unknown:
            name, known = next(iter(unknown)), arguments_of(type(self))
            raise TypeError(
                f"{who}: arguments must be among {', '.join(known)}, got {name}{hint(name, known)}"
            )
        *_, surrogate, _ = check_options(
            who, v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset,
            surrogate=surrogate, return_state=return_state, backend=backend,
        )  # fmt: skip
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.detach_reset = detach_reset
        self.surrogate = surrogate
        self.return_state = return_state
        self.backend = backend

    def __getstate__(self):
        # A copy does not stream and holds no state, wherever it was made.
        passing = ("_streaming", "_v", "_called", "_loop")
        return {name: value for name, value in vars(self).items() if name not in passing}

    def _rate(self, x: Tensor) -> dict:
        """The arguments of ``lif`` that say how the membrane leaks."""
        raise NotImplementedError

    def forward(self, x: Tensor, v0: Tensor | None = None, timesteps: int | None = None):
        """Spikes [T, ...] of x [T, ...]: the first axis is time, and one call runs all steps from
        rest. For one step after the other call with x[t:t+1] inside of ``snnfast.streaming``.

        With ``timesteps``, x [...] is static and shown that often. Returns (s, v) where
        ``return_state`` is set. ``v0``: the state to start from."""
        return self._run(lif, x, v0, timesteps)

    _replayed = False  # by checkpoint_spikes, which brings the state of forward back

    def _run(self, op, x: Tensor, v0: Tensor | None, timesteps: int | None):
        """``op`` (``lif``, or one that ends in it) with this neuron's arguments and state."""
        streaming = self._streaming
        if streaming and not torch.compiler.is_compiling():
            self._call_once()
            if not self._replayed and torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "streaming: a neuron must not run again in backward, its state being not the "
                    "one of forward (torch.utils.checkpoint); use snnfast.nn.checkpoint_spikes"
                )
        result = op(
            x,
            v0=self._v if streaming and v0 is None else v0,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
            timesteps=timesteps,
            return_state=self.return_state or streaming,
            backend=self.backend,
            **self._rate(x),
        )
        if not streaming:
            if v0 is None and timesteps is None and not torch.compiler.is_compiling():
                _single_steps.watch(self, x, result[0] if self.return_state else result)
            return result
        s, v = result
        if self.return_state != "all":
            self._v = v
        elif v.shape[0]:
            self._v = v[-1]
        return (s, v) if self.return_state else s

    def _call_once(self) -> None:
        if self._called:
            raise ValueError(
                f"streaming: a neuron must be called once in a forward of the model, got a second "
                f"call of {type(self).__name__}; give each place in the model a neuron of its own "
                "(for a loop over time within the model, stream the part that the loop calls)"
            )
        if self._called is not None:
            self._called = True

    def extra_repr(self) -> str:
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"detach_reset={self.detach_reset}, surrogate={self.surrogate}"
        )


class LIF(BaseNeuron):
    """Leaky integrate-and-fire neurons; ``decay_input`` is True as in SpikingJelly, while
    :func:`snnfast.models.create_model` and the recipes have the papers' False.

    The arguments, equations and shapes are those of ``snnfast.lif``. ``tau`` is a float >= 1 in
    timesteps. The module has no parameters and no entry in the state_dict.
    """

    def __init__(self, tau: float = 2.0, *, decay_input: bool = True, **neuron):
        super().__init__(**neuron)
        self.tau = check_tau("LIF", tau)
        check_bool("LIF", "decay_input", decay_input)
        self.decay_input = decay_input

    def _rate(self, x):
        return {"tau": self.tau, "decay_input": self.decay_input}

    def extra_repr(self):
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class IF(BaseNeuron):
    """Integrate-and-fire neurons: LIF without a leak, H = V + X."""

    def _rate(self, x):
        return {"tau": math.inf}


class ParametricLIF(BaseNeuron):
    """LIF with a learnable time constant, 1/tau = sigmoid(w) (Fang et al. 2021, arXiv 2007.05785).

    Args:
        init_tau: tau at the start, > 1; w = -log(init_tau - 1).
        channels: None for one tau per layer (``w`` []), as in SpikingJelly; C for one per channel
            (``w`` [C], axis 2 of [T, B, C, ...]).
        decay_input and the rest: as in ``snnfast.lif``.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        *,
        channels: int | None = None,
        decay_input: bool = True,
        **neuron,
    ):
        super().__init__(**neuron)
        init_tau = check_number("ParametricLIF", "init_tau", init_tau)
        if not init_tau > 1.0:
            raise ValueError(f"ParametricLIF: init_tau must be > 1, got {init_tau}")
        check_bool("ParametricLIF", "decay_input", decay_input)
        if channels is not None:
            check_int("ParametricLIF", "channels", channels, 1)
        self.decay_input = decay_input
        shape = () if channels is None else (channels,)
        self.w = nn.Parameter(torch.full(shape, -math.log(init_tau - 1.0)))

    def _rate(self, x):
        # In the state's dtype also where the module was cast to half precision.
        return {"inv_tau": self.w.to(state_dtype(x)).sigmoid(), "decay_input": self.decay_input}

    def extra_repr(self):
        return f"decay_input={self.decay_input}, {super().extra_repr()}"
