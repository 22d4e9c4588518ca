"""The interface of a backend: what each function computes, moves and may rely on.

``ops`` hands over tensors that are laid out as asked for here and reads ``Backend``'s capabilities,
never its name. Every call goes through a check of its tensors (``checks``) before they turn into
addresses. Steps are dense, whatever the order of their axes, and all tensors share x's layout
within a step; states are float32 (float64 for float64); b are the bytes of x's dtype.
"""

from collections.abc import Sequence
from functools import partial
from types import ModuleType

from torch import Tensor, dtype

from snnfast.backends import checks
from snnfast.backends.spec import Channels, LifLayer, NeuronLayer, StepwiseLoss, TssdLoss

PLANS = 4096
"""Kinds of calls that a backend remembers."""


class Backend:
    """One implementation of the ops. ``functions``: a module with the functions below, unchecked;
    ``available()`` gives None or one sentence that says how to enable it.

    Those of a layer are given a first call's values and tensors, keep none of the tensors, and
    return what launches the call for all tensors of the same kinds: shapes, strides, dtypes and
    devices. So what depends on these is checked and computed once.
    """

    def __init__(
        self, functions: ModuleType, *, recomputes_dx: tuple[dtype, ...] = (), samples: bool = False
    ):
        self.functions = functions
        self.samples = samples
        """Whether a launch for each sample is cheap, so that [B, T, ...] is read and written as it
        lies."""
        self.recomputes_dx = recomputes_dx
        """Of which dtypes memory is slow and arithmetic is not: ``norm_lif_dy`` computes the
        gradient of X again instead of reading what the first pass wrote, 5b bytes an element
        instead of 6b."""
        self._plans = {}

    def available(self) -> str | None:
        return self.functions.available()

    def details(self) -> str:
        """How it was built, for ``snnfast info``."""
        return self.functions.details()

    def forget(self) -> None:
        """All that was remembered of calls."""
        self._plans.clear()

    def _run(self, name: str, make, values: tuple, tensors: tuple):
        kinds = [t if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors]
        key = (name, values, *kinds)
        launch = self._plans.get(key)
        if launch is None:
            getattr(checks, name)(*values, *tensors)
            launch = make(*values, *tensors)
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = launch
        return launch(*tensors)

    def _run_plain(self, name: str, values: tuple, tensors: tuple):
        """The same for a function that launches at once: remembered is that it may."""
        function = getattr(self.functions, name)
        return self._run(name, lambda *_: partial(function, *values), values, tensors)

    def lif_forward(
        self, layer: LifLayer, x: Tensor, v0: Tensor | None, rate: Tensor | None, s: Tensor,
        v: Tensor | None = None, borders: Tensor | None = None, stats: Tensor | None = None,
        bias: Tensor | None = None, residual: Tensor | None = None, where: Channels | None = None,
    ) -> None:  # fmt: skip
        """Fills the spikes ``s`` [T, ...] of ``x`` [T, ...], any time stride (0: static); ``v``
        [...] after the last step, or [T, ...] after each; ``borders`` [ceil(T / 8) - 1, ...], V
        after every eighth step.

        ``rate``: [] or [C], instead of the layer's. With ``stats`` [4, C] and ``bias`` [C] x is
        normalised, and ``residual`` [T, ...] added, on the way in. Moves 2b bytes per neuron and
        timestep; 3b with a residual.
        """
        tensors = (x, v0, rate, s, v, borders, stats, bias, residual)
        self._run("lif_forward", self.functions.lif_forward, (layer, where), tensors)

    def lif_backward(
        self, layer: LifLayer, x: Tensor, v0: Tensor | None, rate: Tensor | None,
        borders: Tensor | None, ds: Tensor | None, dv: Tensor | None, dx: Tensor,
        dv0: Tensor | None = None, drate: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Fills ``dx`` [T, ...], or its sum over time where it has no time axis; ``dv0`` [...];
        ``drate``, the gradient of 1/tau, deterministic.

        ``ds`` has any time stride; ``dv`` is [...] or [T, ...]. Moves 3b bytes per neuron and
        timestep.
        """
        tensors = (x, v0, rate, borders, ds, dv, dx, dv0, drate, *(None,) * 4)
        self._run("lif_backward", self.functions.lif_backward, (layer, None, 0), tensors)

    def norm_lif_forward(
        self, layer: LifLayer, where: Channels, momentum: float, unbias: float, eps: float,
        x: Tensor, v0: Tensor | None, rate: Tensor | None, s: Tensor, v: Tensor | None,
        borders: Tensor | None, stats: Tensor, bias: Tensor, residual: Tensor | None,
        weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    ) -> None:  # fmt: skip
        """``norm_stats`` of ``x``, which is not static, and ``lif_forward`` with them."""
        values, tensors = (layer, where, momentum, unbias, eps), (x, v0, rate, s, v, borders, stats)
        tensors += (bias, residual, weight, running_mean, running_var)
        self._run("norm_lif_forward", self._statistics_first, values, tensors)

    def _statistics_first(
        self, layer, where, momentum, unbias, eps, x, v0, rate, s, v, borders, stats, bias,
        residual, *given,
    ):  # fmt: skip
        first = self.functions.norm_stats(where, momentum, unbias, eps, x, stats, *given)
        second = self.functions.lif_forward(
            layer, where, x, v0, rate, s, v, borders, stats, bias, residual
        )

        def launch(x, v0, rate, s, v, borders, stats, bias, residual, *given):
            first(x, stats, *given)
            second(x, v0, rate, s, v, borders, stats, bias, residual)

        return launch

    def norm_lif_backward(
        self, layer: LifLayer, where: Channels, count: int, x: Tensor, v0: Tensor | None,
        rate: Tensor | None, borders: Tensor | None, ds: Tensor | None, dv: Tensor | None,
        dx: Tensor | None, dv0: Tensor | None, drate: Tensor | None, stats: Tensor, bias: Tensor,
        residual: Tensor | None, totals: Tensor, dy: Tensor | None,
    ) -> None:  # fmt: skip
        """The same behind a normalisation: dx is the gradient of X, what the neurons are charged
        with (None where it is not wanted), and ``totals`` [5, C] get the sums over each channel and
        what follows from them, in the launch that ends their reduction. 3b bytes per neuron and
        timestep; 4b with a residual.

        Where ``dy`` is wanted ``norm_dy`` follows, or without a dx ``norm_lif_dy``; dy may be dx.
        """
        tensors = (
            x, v0, rate, borders, ds, dv, dx, dv0, drate, stats, bias, residual, totals, dy
        )  # fmt: skip
        self._run("norm_lif_backward", self._both_passes, (layer, where, count), tensors)

    def _both_passes(
        self, layer, where, count, x, v0, rate, borders, ds, dv, dx, dv0, drate, stats, bias,
        residual, totals, dy,
    ):  # fmt: skip
        own, functions = (stats, bias, residual, totals), self.functions
        first = functions.lif_backward(
            layer, where, count, x, v0, rate, borders, ds, dv, dx, dv0, drate, *own
        )
        again = dx is None
        if dy is None:
            second = None
        elif again:
            second = functions.norm_lif_dy(
                layer, where, x, v0, rate, borders, ds, dv, dy, stats, bias, totals
            )
        else:
            second = functions.norm_dy(where, x, dx, dy, stats, totals)

        def launch(x, v0, rate, borders, ds, dv, dx, dv0, drate, stats, bias, residual, totals, dy):
            first(x, v0, rate, borders, ds, dv, dx, dv0, drate, stats, bias, residual, totals)
            if again and second:
                second(x, v0, rate, borders, ds, dv, dy, stats, bias, totals)
            elif second:
                second(x, dx, dy, stats, totals)

        return launch

    def neuron_forward(
        self, layer: NeuronLayer, inputs: Sequence[Tensor], states: Sequence[Tensor | None],
        params: Sequence[Tensor], outputs: Sequence[Tensor], new_states: Sequence[Tensor] = (),
        borders: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Runs ``layer.step.forward`` over ``inputs`` [T, ...], any time stride each (0: static),
        from ``states`` [...] (None: the layer's rest): fills ``outputs`` [T, ...];
        ``new_states``, all or none of them, [...] after the last step or [T, ...] after each;
        ``borders`` [states, ceil(T / 8) - 1, ...], the states after every eighth step.

        ``params``: [] or [C], contiguous. All arithmetic in the state's dtype, no operations
        contracted. Moves b bytes for each input and output, neuron and timestep.
        """
        arguments = (layer, inputs, states, params, outputs, new_states, borders)
        checks.neuron_forward(*arguments)
        self.functions.neuron_forward(*arguments)

    def neuron_backward(
        self, layer: NeuronLayer, inputs: Sequence[Tensor], states: Sequence[Tensor | None],
        params: Sequence[Tensor], borders: Tensor | None, douts: Sequence[Tensor | None],
        dstates: Sequence[Tensor | None], dinputs: Sequence[Tensor | None],
        dstates0: Sequence[Tensor | None], dparams: Sequence[Tensor | None],
    ) -> None:  # fmt: skip
        """Recomputes segments of 8 steps with ``layer.step.advance`` and walks back through each
        with ``layer.step.adjoint``: fills ``dinputs`` [T, ...], or the sum over time where it has
        no time axis, ``dstates0`` [...] and ``dparams`` (sums over neurons and steps, in the
        params' shapes, deterministic); None: not wanted.

        ``douts`` [T, ...], any time stride, and ``dstates``, [...] of the last state or [T, ...] of
        each; None: 0.
        """
        arguments = (layer, inputs, states, params, borders, douts, dstates, dinputs, dstates0,
                     dparams)  # fmt: skip
        checks.neuron_backward(*arguments)
        self.functions.neuron_backward(*arguments)

    def norm_lif_dy(
        self, layer: LifLayer, where: Channels, x: Tensor, v0: Tensor | None, rate: Tensor | None,
        borders: Tensor | None, ds: Tensor | None, dv: Tensor | None, dy: Tensor, stats: Tensor,
        bias: Tensor, totals: Tensor,
    ) -> None:  # fmt: skip
        """dy = scale dX + b (x - mean) + c, with the dX that ``norm_lif_backward`` has for the same
        arguments computed again, not read; dy has no time axis where x is static. 3b bytes an
        element. Only of dtypes in ``recomputes_dx``."""
        tensors = (x, v0, rate, borders, ds, dv, dy, stats, bias, totals)
        self._run("norm_lif_dy", self.functions.norm_lif_dy, (layer, where), tensors)

    def norm_stats(
        self, where: Channels, momentum: float, unbias: float, eps: float, y: Tensor, stats: Tensor,
        weight: Tensor | None = None, running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Fills ``stats`` [4, C]: mean and biased variance over the steps and neurons of y
        [T, ...], and what ``norm_prepare`` makes of them, in the launch that ends the reduction. b
        bytes an element."""
        values, tensors = (where, momentum, unbias, eps), (y, stats, weight)
        tensors += (running_mean, running_var)
        self._run("norm_stats", self.functions.norm_stats, values, tensors)

    def norm_prepare(
        self, momentum: float, unbias: float, eps: float, stats: Tensor,
        weight: Tensor | None = None, running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
    ) -> None:  # fmt: skip
        """What follows from the mean and the variance in ``stats``: its other rows, with ``weight``
        [C] or 1; and the running ones [C], which take a share ``momentum`` of the mean and of the
        variance times ``unbias``."""
        values, tensors = (momentum, unbias, eps), (stats, weight, running_mean, running_var)
        self._run("norm_prepare", self.functions.norm_prepare, values, tensors)

    def norm_finish(self, count: int, stats: Tensor, totals: Tensor) -> None:
        """What follows from the sums in ``totals``, those of several ranks: its other rows."""
        self._run("norm_finish", self.functions.norm_finish, (count,), (stats, totals))

    def norm_dy(
        self, where: Channels, y: Tensor, dx: Tensor, dy: Tensor, stats: Tensor, totals: Tensor
    ) -> None:
        """dy = scale dx + b (y - mean) + c; dy may be dx, and has no time axis where y is static.
        3b bytes an element."""
        tensors = (y, dx, dy, stats, totals)
        self._run("norm_dy", self.functions.norm_dy, (where,), tensors)

    def stepwise_loss(
        self, loss: StepwiseLoss, logits: Tensor, target: Tensor, teacher_logits: Tensor | None,
        value: Tensor, terms: Tensor, unit: Tensor, gradient: Tensor | None,
    ) -> int | None:  # fmt: skip
        """Fills ``value`` [], ``terms`` [4], ``unit`` [] and ``gradient`` [T, B, C], kept such that
        gradient * unit is that of the value; or returns a label that is no class (on the CPU; on a
        GPU its row is NaN).

        ``logits`` [T, B, C] and ``teacher_logits`` [B, C] in any strides; ``target`` [B] int64 or
        [B, C]. Reads the logits once and writes the gradient once: 2b bytes per logit.
        """
        tensors = (logits, target, teacher_logits, value, terms, unit, gradient)
        return self._run_plain("stepwise_loss", (loss,), tensors)

    def tssd_loss(
        self, loss: TssdLoss, logits: Tensor, target: Tensor, aux_logits: Tensor | None,
        value: Tensor, terms: Tensor, unit: Tensor, gradient: Tensor | None,
        aux_gradient: Tensor | None,
    ) -> int | None:  # fmt: skip
        """Fills ``value``, ``terms`` [3], ``unit`` and the gradients, as ``stepwise_loss`` does;
        ``aux_logits`` [T, B, C] in any strides."""
        tensors = (logits, target, aux_logits, value, terms, unit, gradient, aux_gradient)
        return self._run_plain("tssd_loss", (loss,), tensors)

    def scale_gradient(
        self, gradient: Tensor, grad_output: Tensor, unit: Tensor, scaled: Tensor
    ) -> None:
        """scaled = gradient * (grad_output * unit); 2b bytes per element."""
        self._run_plain("scale_gradient", (), (gradient, grad_output, unit, scaled))

    def pack_spikes(self, s: Tensor, bits: Tensor) -> None:
        """Fills ``bits`` [ceil(N / 8)] with those of the dense ``s``, in the order of its memory.
        b + 1/8 bytes per element."""
        checks.spikes(s, bits)
        self.functions.pack_spikes(s, bits)

    def pack_if_spikes(self, s: Tensor, bits: Tensor) -> bool:
        """The same; False at the first element that is neither +0 nor 1, and then ``bits`` is none.
        On the CPU alone: a GPU would have to be waited for."""
        checks.spikes(s, bits)
        return self.functions.pack_if_spikes(s, bits)

    def unpack_spikes(self, bits: Tensor, s: Tensor) -> None:
        """Fills the dense ``s`` with 0 and 1; b + 1/8 bytes per element."""
        checks.spikes(s, bits)
        self.functions.unpack_spikes(bits, s)
