"""The way from a batch norm to its neuron in a graph of torch.fx, and the graph without it."""

import operator
from types import BuiltinFunctionType, FunctionType
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from snnfast.nn import peers
from snnfast.nn._pair import NEURONS, is_neuron, norm_neuron, refusal
from snnfast.nn._trace import IN_PLACE


def _is(node, kind: str, *targets) -> bool:
    return node.op == kind and node.target in targets


def _reads_shape(node) -> bool:
    if _is(node, "call_function", getattr):
        return node.args[1] in ("shape", "ndim")
    return _is(node, "call_method", "size", "dim", "numel")


def _is_reshape(node, x) -> bool:
    known = _is(node, "call_method", "unflatten", "view", "reshape")
    known = known or _is(node, "call_function", torch.unflatten, torch.reshape)
    return known and node.args[0] is x and x not in node.args[1:] and not node.kwargs


def _is_swap(node, x) -> bool:
    """Of the last two axes."""
    known = _is(node, "call_method", "transpose") or _is(node, "call_function", torch.transpose)
    return known and not node.kwargs and node.args in ((x, -1, -2), (x, -2, -1))


def _added_to(node, x):
    """What ``node`` adds to x, if it is such an addition; None otherwise."""
    in_place = _is(node, "call_function", operator.iadd) or _is(node, "call_method", "add_")
    known = in_place or _is(node, "call_function", operator.add, torch.add)
    known = known or _is(node, "call_method", "add")
    if not known or node.kwargs or len(node.args) != 2 or (in_place and node.args[0] is not x):
        return None
    other = node.args[1] if node.args[0] is x else node.args[0]
    return other if isinstance(other, fx.Node) and other is not x else None


def _may_write(node, modules) -> bool:
    """Whether the operation may change a tensor in place, or is not known not to."""
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    known = peers.keeps_inputs
    if node.op == "call_module":
        module = modules[node.target]
        return not is_neuron(module) and any(
            not (type(m).__module__.startswith(("torch.nn.", "snnfast.")) or known(type(m)))
            or vars(m).get("inplace")
            for m in module.modules()
        )
    if node.op == "call_method":
        return node.target.endswith("_")
    if node.op == "call_function":
        if not isinstance(node.target, (FunctionType, BuiltinFunctionType)):
            return True
        name, home = node.target.__name__, (node.target.__module__ or "torch").split(".")[0]
        known = home in ("torch", "_operator", "builtins", "math", "snnfast")
        if name.endswith("_") or name in IN_PLACE or not known:
            return True
        return home == "torch" and any(a is True for a in node.args)  # F.relu(x, True)
    return False


_NEW_LAYERS = (_ConvNd, _BatchNorm, nn.Linear)
_NEW = {
    norm_neuron,
    operator.add,
    operator.sub,
    operator.mul,
    operator.matmul,
    torch.add,
    torch.cat,
}
_NEW |= {"clone", "add", "sub", "mul", "matmul"}


def _memory(node, modules) -> set:
    """The nodes before it, itself among them, that its result may share memory with."""
    found, left = set(), [node]
    while left:
        node = left.pop()
        if node in found:
            continue
        found.add(node)
        if node.op == "call_module":
            module = modules[node.target]
            new = is_neuron(module) or isinstance(module, _NEW_LAYERS)
        else:
            new = node.op.startswith("call_") and node.target in _NEW
        left += [] if new else _written(node)
    return found


def _written(node) -> list:
    """What the operation may write to, if it writes: all it is given, or what it is a method of."""
    name = getattr(node.target, "__name__", node.target)
    augmented = node.op == "call_function" and name in IN_PLACE
    if augmented or (node.op == "call_method" and name.endswith("_")):
        return [node.args[0]]
    return node.all_input_nodes


class _Chain(NamedTuple):
    norm: fx.Node
    reshape: fx.Node | None
    residual: fx.Node | None
    swapped: bool
    contiguous: bool
    neuron: fx.Node
    links: list


def _chain(norm: fx.Node, modules) -> "_Chain | str | None":
    """The way from a batch norm to its neuron; why there is none; None where its output is one of
    the graph's, so that more of the model may show it."""
    if len(norm.args) != 1 or norm.kwargs:
        return "it is called with more than its input"
    if sum(_is(node, "call_module", norm.target) for node in norm.graph.nodes) > 1:
        return "it is called more than once"
    x, reshape, residual, links = norm, None, None, [norm]
    swapped = contiguous = False
    while True:
        users = [u for u in x.users if residual is not None or not _reads_shape(u)]
        if len(users) != 1:
            return f"its output is read by {len(users)} operations"
        (user,) = users
        if user.op == "output":
            return None
        if user.op == "call_module" and is_neuron(modules[user.target]):
            break
        if _is(user, "call_function", norm_neuron):
            return "its output is what another fused batch norm adds"
        added = _added_to(user, x) if residual is None and not swapped else None
        if added is not None:
            residual = added
        elif reshape is None and _is_reshape(user, x):
            reshape = user
        elif _is_swap(user, x) and not (swapped or reshape or residual):
            swapped = True
        elif _is(user, "call_method", "contiguous") and user.args == (x,) and not user.kwargs:
            contiguous = True
        else:
            what = modules[user.target] if user.op == "call_module" else user.target
            what = getattr(what, "__name__", what if isinstance(what, str) else type(what).__name__)
            return f"its output is read by {what}"
        links.append(user)
        x = user
    if user.args != (x,) or user.kwargs:
        return "the neuron is called with more than its input"
    why = refusal(modules[user.target], NEURONS)
    if why is not None:
        return why
    before, behind = modules[norm.target], modules[user.target]
    if peers.is_norm(type(before)) and before.step_mode == "m":
        if getattr(behind, "step_mode", "m") == "s":
            return f"its step_mode is 'm', that of {type(behind).__name__} 's'"
    node = norm.next
    while node is not user:
        if node not in links and _may_write(node, modules):
            return f"{node.target} between it and the neuron may change a tensor in place"
        if node.op == "get_attr" and node.target.startswith(f"{norm.target}."):
            return f"{node.target} is read between it and the neuron"
        node = node.next
    # What the fused op keeps for backward, and the batch norm and the addition may not.
    kept = set().union(*(_memory(n, modules) for n in (norm.args[0], residual) if n is not None))
    while node.op != "output":
        written = _written(node) if _may_write(node, modules) else ()
        if any(not kept.isdisjoint(_memory(n, modules)) for n in written):
            return f"{node.target} behind the neuron may change a tensor in place that it reads"
        node = node.next
    return _Chain(norm, reshape, residual, swapped, contiguous, user, links)


def _replace(graph: fx.Graph, chain: _Chain) -> None:
    y = shaped = chain.norm.args[0]
    for link in chain.links:
        with graph.inserting_before(link):
            if link is chain.reshape:
                before = shaped
                shaped = graph.node_copy(link, lambda n, x=before: x if n in chain.links else n)
                if _is(shaped, "call_method", "view"):  # of what is not contiguous here
                    shaped.target = "reshape"
            elif _is_swap(link, link.args[0]):
                shaped = graph.call_method("transpose", (y, -1, -2))
        for reader in [u for u in link.users if _reads_shape(u)]:
            reader.replace_input_with(link, shaped)
    with graph.inserting_before(chain.neuron):
        pair = (graph.get_attr(chain.norm.target), graph.get_attr(chain.neuron.target))
        spikes = graph.call_function(norm_neuron, (*pair, y, shaped, chain.residual, chain.swapped))
        if chain.contiguous:
            spikes = graph.call_method("contiguous", (spikes,))
    chain.neuron.replace_all_uses_with(spikes)
    for node in (chain.neuron, *reversed(chain.links)):
        graph.erase_node(node)


def fuse_graph(graph: fx.Graph, modules, wanted) -> tuple[dict, dict]:
    """Rewrites the graph; returns {norm: (neuron, whether something is added)} and {norm: why
    not, None where it may yet be}."""
    pairs, reasons = {}, {}
    for node in list(graph.nodes):
        if node.op == "call_module" and modules[node.target] in wanted:
            norm, chain = modules[node.target], _chain(node, modules)
            if isinstance(chain, _Chain):
                pairs[norm] = modules[chain.neuron.target], chain.residual is not None
                _replace(graph, chain)
            else:
                reasons[norm] = chain
    return pairs, reasons
