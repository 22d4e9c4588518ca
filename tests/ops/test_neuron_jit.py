"""Neurons as machine code: what is compiled, and how. That it computes what it must, the tests of
test_neuron_cpu.py and test_neuron.py say."""

import math
import subprocess
import sys

import programs
import pytest
import torch
from program_cases import ATAN, adjoint_loop, all_same, backward, close, cotangents, looped, run

import snnfast
from snnfast import surrogate as surrogates
from snnfast.backends import cpu
from snnfast.backends.cpu import compiled, interpreted, neuron
from snnfast.program import llvm
from snnfast.program.ir import Builder
from snnfast.program.step import Step
from snnfast.program.surrogates import gradient_program

pytestmark = pytest.mark.skipif(not compiled.available(), reason="llvmlite is not installed")


@pytest.fixture(autouse=True)
def machine_code(monkeypatch):
    monkeypatch.setattr(neuron, "executor", lambda: compiled)


def test_it_is_taken_where_llvmlite_is(monkeypatch):
    monkeypatch.undo()
    assert neuron.executor() is compiled
    assert "as machine code" in cpu.details()
    monkeypatch.setattr(compiled, "available", lambda: False)
    assert neuron.executor() is interpreted
    assert "interpreted" in cpu.details()


def test_llvmlite_is_imported_at_the_first_use():
    code = (
        "import sys, torch, snnfast\n"
        "from snnfast.neurons import lif\n"
        "assert 'llvmlite' not in sys.modules\n"
        "lif(torch.randn(3, 5))\n"
        "assert 'llvmlite' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def charged(numbers):
    """(x, v) -> a spike and v + numbers . x, v ^ 2, as a step."""
    b = Builder()
    x, v = b.add("input"), b.add("state")
    h = b.add("add", b.add("mul", b.constant(numbers[0]), x), v)
    u = b.add("sub", h, b.add("mul", b.constant(numbers[1]), b.add("mul", v, v)))
    return Step.of(b.program([b.add("spike", u), u]).pack(), 1, 1, 0)


def test_other_numbers_need_no_other_code(monkeypatch):
    """Nor does another number of steps or neurons; another step does."""
    made, make = [], compiled.machine_code

    def counted(text, name):
        made.append(text)
        return make(text, name)

    monkeypatch.setattr(compiled, "machine_code", counted)
    for numbers, steps, n in (((0.3, 0.7), 4, 33), ((1.7, -2.5), 9, 520), ((0.1, 1e-9), 1, 1)):
        step = charged(numbers)
        inputs, states, _ = programs.tensors(step, 0, steps, n)
        layer = programs.layer_of(step, ATAN, steps)
        all_same(run(layer, inputs, states, [])[0], looped(layer, inputs, states, []))
    assert len(made) == 3 and len(set(made)) == 1
    run(programs.layer_of(charged((1.0, 0.7)), ATAN, 1), inputs, states, [])  # 1 is in the code
    assert len(set(made)) == 2


def pages():
    """{(start, end): permissions} of what this process has mapped."""
    found = {}
    with open("/proc/self/maps") as maps:
        for line in maps:
            where, permissions, *_ = line.split()
            found[tuple(int(end, 16) for end in where.split("-"))] = permissions
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_page_of_code_can_be_written():
    compiled.machine_code("define void @one() {\n  ret void\n}\n", "one")  # llvmlite has its own
    before = {where for where, allowed in pages().items() if allowed.startswith("rwx")}
    address, _ = compiled.machine_code("define i32 @two() {\n  ret i32 2\n}\n", "two")
    after = pages()
    assert {where for where, allowed in after.items() if allowed.startswith("rwx")} == before
    (allowed,) = (a for (start, end), a in after.items() if start <= address < end)
    assert allowed == "r-xp"


def test_nothing_is_contracted():
    """A product and its sum are rounded one by one."""
    step = charged((1.0, 1.0))
    v = torch.full((40,), 1 + 2.0**-12)
    x = v * v - v
    layer = programs.layer_of(step, ATAN, 1)
    (_, u), _ = run(layer, [x[None]], [v], [])
    assert not u.any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("n", (1024, 1032))
def test_past_the_caches(dtype, n, monkeypatch):
    """Rows that begin on lines and rows that do not are written alike."""
    step, steps = programs.named("adaptive_lif"), 9
    inputs, states, params = programs.tensors(step, 0, steps, n, dtype)
    layer = programs.layer_of(step, ATAN, steps)

    def everything(limit):
        monkeypatch.setattr(cpu.launch.module(), "CACHE_BYTES", limit)
        results, borders = run(layer, inputs, states, params)
        beside = torch.empty(steps * n + 1, dtype=dtype)[1:].view(steps, n)
        cpu.neuron_forward(layer, inputs, states, params, [beside])
        along = [torch.ones_like(results[0])], [torch.ones_like(v) for v in results[1:]]
        return [*results, beside, *backward(layer, inputs, states, params, borders, *along)]

    all_same(everything(0), everything(1 << 60))


@pytest.mark.parametrize("exponent", (-149, -127, -126, -3, 1, 100, 127))
def test_quotients_by_powers_of_two(exponent):
    """Are products, but where the inverse is no number."""
    b = Builder()
    quotient = b.add("div", b.add("input"), b.constant(2.0**exponent))
    step = Step.of(b.program([quotient]).pack(), 1, 1, 0)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (10_000,), generator=generator).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([0.0, -0.0, math.inf, 2.0**-149])])[None]
    layer = programs.layer_of(step, ATAN, 1)
    all_same(run(layer, [x], [], [])[0], looped(layer, [x], [], [])[:1])


@pytest.mark.parametrize("name", surrogates.TABLE)
def test_surrogates_are_those_of_the_table(name):
    """As programs they are the formulas of PyTorch, with any parameters."""
    chosen = surrogates.resolve(name)
    step = programs.named("lif")
    inputs, states, _ = programs.tensors(step, 0, 9, 65)
    layer = programs.layer_of(step, chosen, 9)
    results, borders = run(layer, inputs, states, [])
    along = cotangents(layer, results)
    got = backward(layer, inputs, states, [], borders, *along)
    close(got, adjoint_loop(layer, inputs, states, [], chosen, *along), 1e-5)
    assert gradient_program(chosen.ID, *chosen.params()).results


@pytest.mark.parametrize("seed", range(30))
def test_random_steps(seed):
    """Forward and adjoint, of operations that are exact and others."""
    step, steps, n = programs.random_step(seed), 10, 97
    inputs, states, params = programs.tensors(step, seed, steps, n, torch.float64)
    layer = programs.layer_of(step, ATAN, steps)
    results, borders = run(layer, inputs, states, params)
    close(results, looped(layer, inputs, states, params), 1e-12)
    along = cotangents(layer, results)
    got = backward(layer, inputs, states, params, borders, *along)
    close(got, adjoint_loop(layer, inputs, states, params, ATAN, *along), 1e-10)


def test_an_operation_that_has_no_code_is_refused():
    with pytest.raises(ValueError, match=r"^program: detach has no machine code$"):
        llvm.operation(llvm.Lanes(llvm.Code(), "float", 8), "detach", "%x")


def test_through_the_public_function():
    x = torch.randn(11, 6, 40, requires_grad=True)
    s, v = snnfast.neurons.lif(x, return_state="all")
    (s.sum() + v.square().sum()).backward()
    y = x.detach().requires_grad_()
    s_, v_ = snnfast.neurons.lif(y, return_state="all", backend="reference")
    (s_.sum() + v_.square().sum()).backward()
    assert torch.equal(s, s_) and torch.equal(v, v_)
    torch.testing.assert_close(x.grad, y.grad)
