"""``spikingjelly.activation_based.monitor``: what passes through the modules of a kind, recorded by
hooks. Records are kept until ``clear_recorded_data``, with their graphs unless the function given
detaches them."""

from torch import nn

from snnfast.interop.spikingjelly import peer

__all__ = [
    "AttributeMonitor",
    "BaseMonitor",
    "GradInputMonitor",
    "GradOutputMonitor",
    "InputMonitor",
    "OutputMonitor",
]


def _as_is(x):
    return x


class BaseMonitor:
    """``monitor[i]`` is the i-th record, ``monitor["conv1"]`` the list of those of a module."""

    def __init__(self):
        self.hooks = []
        self.monitored_layers = []
        self.records = []
        self.name_records_index = {}
        self._enable = True

    def _watch(self, net: nn.Module, instance, register, function) -> None:
        """Call ``register(module, hook)`` for every ``instance`` in ``net``."""
        for name, module in net.named_modules():
            if isinstance(module, type(net) if instance is None else instance):
                self.monitored_layers.append(name)
                self.name_records_index[name] = []
                self.hooks.append(register(module, self._hook(name, function)))

    def _hook(self, name: str, function):
        """``function(module, what came in, what went out)``"""

        def hook(module, came=None, went=None):
            if self._enable:
                self.name_records_index[name].append(len(self.records))
                self.records.append(function(module, _alone(came), _alone(went)))

        return hook

    def __getitem__(self, i: "int | str"):
        if isinstance(i, str):
            return [self.records[index] for index in self.name_records_index[i]]
        return self.records[i]

    def clear_recorded_data(self) -> None:
        self.records.clear()
        for indices in self.name_records_index.values():
            indices.clear()

    def enable(self) -> None:
        self._enable = True

    def disable(self) -> None:
        self._enable = False

    def is_enable(self) -> bool:
        return self._enable

    def remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def __del__(self):
        self.remove_hooks()


def _alone(x):
    return x[0] if isinstance(x, tuple) and len(x) == 1 else x


class OutputMonitor(BaseMonitor):
    def __init__(self, net: nn.Module, instance=None, function_on_output=_as_is):
        super().__init__()
        register = nn.Module.register_forward_hook
        self._watch(net, instance, register, lambda m, x, y: function_on_output(y))


class InputMonitor(BaseMonitor):
    def __init__(self, net: nn.Module, instance=None, function_on_input=_as_is):
        super().__init__()
        register = nn.Module.register_forward_hook
        self._watch(net, instance, register, lambda m, x, y: function_on_input(x))


class AttributeMonitor(BaseMonitor):
    """An attribute of the modules, before each of their calls or after it."""

    def __init__(
        self,
        attribute_name: str,
        pre_forward: bool,
        net: nn.Module,
        instance=None,
        function_on_attribute=_as_is,
    ):
        super().__init__()
        register = nn.Module.register_forward_hook
        if pre_forward:
            register = nn.Module.register_forward_pre_hook

        def record(module, x, y):
            return function_on_attribute(getattr(module, attribute_name))

        self._watch(net, instance, register, record)


class GradInputMonitor(BaseMonitor):
    def __init__(self, net: nn.Module, instance=None, function_on_grad_input=_as_is):
        super().__init__()
        register = nn.Module.register_full_backward_hook
        self._watch(net, instance, register, lambda m, dx, dy: function_on_grad_input(dx))


class GradOutputMonitor(BaseMonitor):
    def __init__(self, net: nn.Module, instance=None, function_on_grad_output=_as_is):
        super().__init__()
        register = nn.Module.register_full_backward_hook
        self._watch(net, instance, register, lambda m, dx, dy: function_on_grad_output(dy))


__getattr__ = peer.names(__name__)
