"""What stands in front of a step: what of it depends on its parameters alone, computed once a call
instead of once a timestep; and a normalisation of its input."""

from snnfast.program.ir import TRUTH, Builder, Node, Program


def split(program: Program) -> tuple[Program, Program]:
    """(prelude, main): ``main`` is ``program`` with ``param`` leaves that are the results of
    ``prelude``, which reads the program's own."""
    known = _of_parameters(program.nodes)
    read = {r for r in program.results if r is not None}
    for place, node in enumerate(program.nodes):
        if not known[place]:
            read.update(node.args)
    hoisted = [place for place in sorted(read) if known[place]]
    which = {place: k for k, place in enumerate(hoisted)}
    before, main = Builder(), Builder()
    first = before.copy(program)
    place_of = {}

    def leaf(node: Node, places: list[int]) -> int | None:
        place = len(places)
        if not known[place]:
            return None
        if place in which:
            place_of[place] = main.add("param", number=which[place])
        return place_of.get(place, -1)  # -1: read by the prelude alone

    places = main.copy(program, leaf)
    results = (None if r is None else places[r] for r in program.results)
    return before.program(first[place] for place in hoisted), main.program(results)


def _of_parameters(nodes: tuple[Node, ...]) -> list[bool]:
    known: list[bool] = []
    constant: list[bool] = []
    for op, args, _ in nodes:
        constant.append(op == "const")
        pure = bool(args) and op != "spike"
        pure = pure and all(known[a] or constant[a] for a in args) and any(known[a] for a in args)
        known.append(op == "param" or pure)
    for place in range(len(nodes) - 1, -1, -1):
        for argument in nodes[place].args:
            # A parameter is a number: a truth value that the step reads is one of the step.
            if nodes[argument].op in TRUTH and not known[place]:
                known[argument] = False
    return known


def normalised(program: Program, params: int, residual: bool) -> Program:
    """``program``, whose only input is X = (Y - mean) scale + bias [+ R]: inputs Y and R, behind
    its ``params`` the parameters mean, scale and bias. Unfused, as ``norm_lif`` has it."""
    builder = Builder()

    def leaf(node: Node, places: list[int]) -> int | None:
        if node.op != "input":
            return None
        add = builder.add
        mean, scale, bias = (add("param", number=params + k) for k in range(3))
        x = add("add", add("mul", add("sub", add("input"), mean), scale), bias)
        return add("add", x, add("input", number=1)) if residual else x

    places = builder.copy(program, leaf)
    return builder.program(None if r is None else places[r] for r in program.results)
