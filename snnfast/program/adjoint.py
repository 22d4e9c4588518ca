"""The programs that follow from a step: what backward recomputes, and the step's adjoint."""

from snnfast.program.ir import LEAVES, TRUTH, Builder, Node, Program


def without_detach(program: Program) -> Program:
    """The same values; where no gradient may pass no longer stands in it."""
    builder = Builder()
    places = builder.copy(program, lambda n, at: at[n.args[0]] if n.op == "detach" else None)
    return builder.program(None if r is None else places[r] for r in program.results)


def advance(program: Program, outputs: int) -> Program:
    """The new states of a step alone: ``results`` without the first ``outputs``."""
    plain = without_detach(program)
    builder = Builder()
    places = builder.copy(plain)
    return builder.program(places[r] for r in plain.results[outputs:])


def with_surrogate(program: Program, gradient: Program) -> Program:
    """``program`` with the values of ``gradient``, a program of one input, for ``surrogate``."""
    builder = Builder()

    def replaced(node: Node, places: list[int]) -> int | None:
        if node.op != "surrogate":
            return None
        argument = places[node.args[0]]
        inner = builder.copy(gradient, lambda n, at: argument if n.op == "input" else None)
        return inner[gradient.results[0]]

    places = builder.copy(program, replaced)
    return builder.program(None if r is None else places[r] for r in program.results)


def adjoint(program: Program, outputs: int, inputs: int, params: int) -> Program:
    """The gradients of one step by reverse mode: of its inputs, its states, its parameters.

    Reads the step's own leaves, and ``dout`` and ``dstate``, the gradients of its results: the
    first ``outputs`` of them are outputs, the rest new states. A derivative is what autograd has
    for the same operation (halves at a tie of min and max, none through detach and comparisons),
    and that of a spike is ``surrogate``.
    """
    builder = Builder()
    places = builder.copy(program, lambda n, at: at[n.args[0]] if n.op == "detach" else None)
    needs = _needs_gradient(program.nodes)
    states = len(program.results) - outputs
    gradients: list[int | None] = [None] * len(program.nodes)

    def give(place: int, gradient: int) -> None:
        if needs[place]:
            before = gradients[place]
            both = gradient if before is None else builder.add("add", before, gradient)
            gradients[place] = both

    for k, result in enumerate(program.results):
        kind, which = ("dout", k) if k < outputs else ("dstate", k - outputs)
        if result is not None:
            give(result, builder.add(kind, number=which))
    for place in range(len(program.nodes) - 1, -1, -1):
        node, gradient = program.nodes[place], gradients[place]
        if gradient is not None and node.op not in LEAVES:
            values = [places[a] for a in node.args]
            parts = _derivative(builder, node.op, values, places[place], gradient)
            for argument, part in zip(node.args, parts, strict=True):
                if part is not None:
                    give(argument, part)

    def of(kind: str, count: int):
        found = program.leaves(kind)
        return [gradients[found[k]] if k in found else None for k in range(count)]

    return builder.program([*of("input", inputs), *of("state", states), *of("param", params)])


def _needs_gradient(nodes: tuple[Node, ...]) -> list[bool]:
    """Of which values an input, a state or a parameter has part."""
    needs: list[bool] = []
    for op, args, _ in nodes:
        carries = op not in TRUTH and op != "detach"
        needs.append(op in LEAVES or (carries and any(needs[a] for a in args)))
    return needs


def _derivative(b: Builder, op: str, x: list[int], y: int, g: int) -> tuple[int | None, ...]:
    """The gradients of the arguments ``x`` of ``op``, whose value is ``y`` and gradient ``g``."""
    if op == "add":
        return g, g
    if op == "sub":
        return g, b.add("neg", g)
    if op == "mul":
        return b.add("mul", g, x[1]), b.add("mul", g, x[0])
    if op == "div":
        through = b.add("mul", g, b.add("div", y, x[1]))
        return b.add("div", g, x[1]), b.add("neg", through)
    if op == "neg":
        return (b.add("neg", g),)
    if op == "abs":
        return (b.add("mul", g, _sign(b, x[0])),)
    if op in ("min", "max"):
        return _picked(b, op, x, g)
    if op == "where":
        zero = b.constant(0.0)
        return None, b.add("where", x[0], g, zero), b.add("where", x[0], zero, g)
    if op == "exp":
        return (b.add("mul", g, y),)
    if op == "log":
        return (b.add("div", g, x[0]),)
    if op == "sqrt":
        return (b.add("div", g, b.add("mul", b.constant(2.0), y)),)
    if op == "tanh":
        return (b.add("mul", g, b.add("sub", b.constant(1.0), b.add("mul", y, y))),)
    if op == "sigmoid":
        slope = b.add("mul", b.add("sub", b.constant(1.0), y), y)
        return (b.add("mul", g, slope),)
    if op == "pow":
        exponent = b.nodes[x[1]].number
        less = b.add("pow", x[0], b.constant(exponent - 1.0))
        return b.add("mul", g, b.add("mul", x[1], less)), None
    if op == "spike":
        return (b.add("mul", g, b.add("surrogate", x[0])),)
    raise ValueError(f"program: {op} has no derivative")


def _sign(b: Builder, x: int) -> int:
    zero = b.constant(0.0)
    below = b.add("where", b.add("lt", x, zero), b.constant(-1.0), zero)
    return b.add("where", b.add("gt", x, zero), b.constant(1.0), below)


def _picked(b: Builder, op: str, x: list[int], g: int) -> tuple[int, int]:
    """Of min and max: all of the gradient to the one that was taken, half of it at a tie."""
    zero, half = b.constant(0.0), b.add("mul", g, b.constant(0.5))
    tied = b.add("where", b.add("eq", *x), half, g)
    loses = ("gt", "lt") if op == "min" else ("lt", "gt")
    first, second = (b.add("where", b.add(how, *x), zero, tied) for how in loses)
    return first, second
