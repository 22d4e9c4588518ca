"""Arguments that a neuron does not have, and what they are called here."""

import difflib
import inspect

_STREAMING = "snnfast.streaming, where state is to carry from call to call"
# As SpikingJelly, snnTorch, Norse and older scripts have them.
_PEERS = {
    "T": "timesteps, in the call",
    "act": "surrogate",
    "alpha": "surrogate=snnfast.surrogate.ATan(alpha=...)",
    "beta": "snnfast.nn.LIF(beta=...), or snnTorch's nn.Leaky",
    "decay": "beta",
    "detach": "detach_reset",
    "hard_reset": "v_reset, None for the soft reset",
    "init_hidden": _STREAMING,
    "init_tau": "tau",
    "learn_beta": "snnfast.nn.ParametricLIF, or nn.Leaky with an nn.Parameter",
    "output": "return_state",
    "reset_mechanism": "v_reset, None to subtract the threshold; snnTorch's is nn.Leaky",
    "soft_reset": "v_reset=None",
    "spike_grad": "surrogate",
    "step_mode": "nothing: a call takes all timesteps, x [T, ...]",
    "store_v_seq": "return_state='all'",
    "surrogate_fn": "surrogate",
    "surrogate_function": "surrogate",
    "tau": "init_tau",
    "theta": "v_threshold",
    "thresh": "v_threshold",
    "threshold": "v_threshold",
    "timesteps": "timesteps, in the call",
    "v_th": "v_threshold",
    "vth": "v_threshold",
}


def arguments_of(cls: type) -> list[str]:
    """The keyword arguments of a neuron's class and its bases."""
    names = []
    for base in cls.__mro__:
        if base.__module__.startswith("snnfast.") and "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return [name for name in dict.fromkeys(names) if name != "self"]


def hint(name: str, known) -> str:
    """What may have been meant by ``name``, to be put behind it."""
    meant = _PEERS.get(name)
    if meant is None:
        meant = next(iter(difflib.get_close_matches(name, known, n=1)), None)
    if meant in known:
        return f" (did you mean {meant!r}?)"
    return "" if meant is None or meant.isidentifier() else f" (here: {meant})"
