"""Faults of the kinds that kernels have, one at a time in a copy of the tree, and the check of the
repository that each must turn red.

    python tests/mutants.py            every mutant; a line each, and exit status 1 if one lives
    python tests/mutants.py barrier    those whose name has the word
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("kernels", "csrc", "snnfast", "tests", "benchmarks", "pyproject.toml", "setup.py")

INTERPRETED = {"TRITON_INTERPRET": "1"}
CHECKS = {
    "interpreter": (INTERPRETED, "-k", "interpreted"),
    "host": ({},),
    "AOT": ({},),
    "proof": ({}, "-m", "prove", "tests/test_prove.py", "-k"),
}
"""How each check is run: its environment, and what stands before the names of its tests."""

RACES = ("potential_race", "not_wellsynced", "invalid_lifecycle")
"""What a proof says of a fault."""


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    check: str
    tests: tuple[str, ...]


LIF, NORM = ("tests/ops/test_lif.py",), ("tests/ops/test_norm_sums.py",)
NEURON = ("tests/ops/test_neuron_triton.py",)
HOST_LIF = ("tests/test_cuda_host.py::test_compiled_at_first_use",)
HOST_NEURON = ("tests/ops/test_neuron_cuda.py",)
HOST_NORM = ("tests/test_norm_cuda_host.py::test_compiled_at_first_use",)
HOST_DISTILL = ("tests/test_distill_cuda_host.py::test_compiled_at_first_use",)
HOST_SPIKES = ("tests/test_spikes_device.py::test_compiled_at_first_use",)
DISTILL = ("tests/ops/test_distill.py",)
SPIKES = ("tests/ops/test_spikes.py",)

MUTANTS = [
    Mutant(
        "two blocks on one tile, forward", "kernels/lif.py",
        "        first = tl.program_id(0).to(tl.int64) * BLOCK\n",
        "        first = (tl.program_id(0) // 2).to(tl.int64) * BLOCK\n",
        "proof", ("test_layers and T4 and float32 and triton and lif and not norm",),
    ),
    Mutant(
        "blocks overlap by half, backward", "kernels/lif.py",
        "        first = program.to(tl.int64) * BLOCK\n",
        "        first = program.to(tl.int64) * (BLOCK // 2)\n",
        "proof", ("test_layers and T4 and float32 and triton and lif and not norm",),
    ),
    Mutant(
        "dropped mask of a store", "kernels/lif.py",
        "tl.store(row + lane, spike.to(s.dtype.element_ty), mask=live)",
        "tl.store(row + lane, spike.to(s.dtype.element_ty))",
        "interpreter", LIF,
    ),
    Mutant(
        "steps past the end are stored", "kernels/lif.py",
        "            live = inside if WHOLE else tl.where(start + i < steps, inside, False)\n"
        "            residual_t",
        "            live = inside\n            residual_t",
        "interpreter", LIF,
    ),
    Mutant(
        "border of a segment off by one", "kernels/lif.py",
        "row = borders + (tl.cast(k, tl.int64) - 1) * n + first",
        "row = borders + tl.cast(k, tl.int64) * n + first",
        "interpreter", LIF,
    ),
    Mutant(
        "border kept before the last step", "kernels/lif.py",
        "            state = after if WHOLE else tl.where(start + i < steps, after, state)",
        "            state = after if i + 1 < STEPS or not LONG else state",
        "interpreter", LIF,
    ),
    Mutant(
        "wrong stride of dx", "kernels/lif.py",
        "dx_row -= n", "dx_row -= x_stride",
        "interpreter", LIF,
    ),
    Mutant(
        "missing accumulation of the rate's gradient", "kernels/lif.py",
        "                drate_sum += drate_t", "                drate_sum = drate_t",
        "interpreter", LIF,
    ),
    Mutant(
        "threshold is beyond, not at", "kernels/lif_step.py",
        "tl.where(h >= P[2], 1.0, 0.0)", "tl.where(h > P[2], 1.0, 0.0)",
        "interpreter", LIF,
    ),
    Mutant(
        "quotient by the reciprocal alone", "kernels/lif_step.py",
        "        exact = tl.fma(tl.fma(q, -tau, d), reciprocal, q)\n", "        exact = q\n",
        "AOT", ("tests/test_triton_aot.py::test_the_quotient_takes_two_fma",),
    ),
    Mutant(
        "program: dropped mask of a store", "kernels/neuron.py",
        "tl.store(outputs[j] + row + lane, value, mask=live)",
        "tl.store(outputs[j] + row + lane, value, mask=inside)",
        "interpreter", NEURON,
    ),
    Mutant(
        "program: border of a segment off by one", "kernels/neuron.py",
        "row = borders + j * border_stride + (tl.cast(k, tl.int64) - 1) * n + first",
        "row = borders + j * border_stride + tl.cast(k, tl.int64) * n + first",
        "interpreter", NEURON,
    ),
    Mutant(
        "program: borders of one state for all", "kernels/neuron.py",
        "tl.store(row + j * border_stride + lane, state[j]", "tl.store(row + lane, state[j]",
        "interpreter", NEURON,
    ),
    Mutant(
        "program: states before a step are those after it", "kernels/neuron.py",
        "found = ADJOINT(xs[i], befores[i],", "found = ADJOINT(xs[i], state,",
        "interpreter", NEURON,
    ),
    Mutant(
        "program: missing accumulation of a parameter's gradient", "kernels/neuron.py",
        "sums += (dp_sums[j] + (dp if L.whole", "sums += ((dp if L.whole",
        "interpreter", NEURON,
    ),
    Mutant(
        "program: threshold is beyond, not at", "snnfast/program/triton_source.py",
        '"spike": "tl.where({} >= {}, 1.0, 0.0)"', '"spike": "tl.where({} > {}, 1.0, 0.0)"',
        "interpreter", NEURON,
    ),
    Mutant(
        "program: the forward is contracted", "snnfast/program/source.py",
        "if not self.gradient[place] or self.reads[place] > 1:", "if self.reads[place] > 1:",
        "AOT", ("tests/test_neuron_triton_aot.py::test_sums_are_not_contracted",),
    ),
    Mutant(
        "program: a quotient by the reciprocal", "snnfast/program/source.py",
        "        if self.gradient[place]:\n            return f\"{top} * {inverse}\"",
        "        if inverse:\n            return f\"{top} * {inverse}\"",
        "AOT", ("tests/test_neuron_triton_aot.py::test_a_quotient_takes_two_fma",),
    ),
    Mutant(
        "channel of a row shifted", "kernels/norm_lif.py",
        "channel = (((begin % channels).to(tl.int32) + row) % channels)[:, None]",
        "channel = (((begin % channels).to(tl.int32) + row + 1) % channels)[:, None]",
        "interpreter", ("tests/ops/test_norm_lif.py",),
    ),
    Mutant(
        "sums of two programs in one slot", "kernels/norm_lif.py",
        "slot = (group.to(tl.int64) * channels + start + column)[None, :]",
        "slot = (group.to(tl.int64) // 2 * channels + start + column)[None, :]",
        "interpreter", NORM,
    ),
    Mutant(
        "second pass adds the mean", "kernels/norm_lif.py",
        "            centred = ys[i].to(tl.float32) - mean_c\n"
        "            dy_t", "            centred = ys[i].to(tl.float32) + mean_c\n            dy_t",
        "interpreter", ("tests/ops/test_norm_lif.py",),
    ),
    Mutant(
        "removed barrier before statistics are overwritten", "kernels/norm_statistics.py",
        "        tl.debug_barrier()  # all threads have read them\n", "",
        "proof", ("test_others and numbers and float32 and triton",),
    ),
    Mutant(
        "bits in the wrong order", "kernels/spikes.py",
        "tl.sum(spike << lane[None, :], 1)", "tl.sum(spike << (7 - lane)[None, :], 1)",
        "interpreter", SPIKES,
    ),
    Mutant(
        "a chunk of classes too few", "kernels/distill_statistics.py",
        "for chunk in range(0, classes, BLOCK):", "for chunk in range(0, classes - BLOCK, BLOCK):",
        "interpreter", DISTILL,
    ),
    Mutant(
        "two threads on one neuron", "csrc/cuda/lif.cuh",
        "SNN_DEVICE void lif_thread(const ForwardArgs& p, const Neuron& neuron) {\n"
        "  const i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x;",
        "SNN_DEVICE void lif_thread(const ForwardArgs& p, const Neuron& neuron) {\n"
        "  const i64 thread = (i64(blockIdx.x) * kThreads + threadIdx.x) / 2;",
        "proof", ("test_layers and T4 and float32 and cuda and lif and not norm",),
    ),
    Mutant(
        "no bound on the threads", "csrc/cuda/lif.cuh",
        "SNN_DEVICE void lif_thread(const BackwardArgs& p, const Neuron& neuron) {\n"
        "  const i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x;\n"
        "  if (thread * kLanes >= p.neurons) return;",
        "SNN_DEVICE void lif_thread(const BackwardArgs& p, const Neuron& neuron) {\n"
        "  const i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x;",
        "host", HOST_LIF,
    ),
    Mutant(
        "border of a segment off by one, CUDA", "csrc/cuda/scan.cuh",
        "      load_state<kLanes>(p.borders + (base / kSegment - 1) * p.neurons + i, v);",
        "      load_state<kLanes>(p.borders + base / kSegment * p.neurons + i, v);",
        "host", HOST_LIF,
    ),
    Mutant(
        "border of any neuron off by one, CUDA", "csrc/cuda/neuron.cuh",
        "        load_state<kLanes>(p.state(Where::kBorders) + border, v[k]);",
        "        load_state<kLanes>(p.state(Where::kBorders) + border + p.neurons, v[k]);",
        "host", HOST_NEURON,
    ),
    Mutant(
        "no bound on the threads, any neuron", "csrc/cuda/neuron.cuh",
        "thread * kLanes;\n  if (i >= p.neurons) return;", "thread * kLanes;",
        "host", HOST_NEURON,
    ),
    Mutant(
        "a gradient of a param per channel to its neighbour", "csrc/cuda/neuron.cuh",
        "dp[k][in(SNN_PER_LANE, k) ? o + j : 0] +=", "dp[k][in(SNN_PER_LANE, k) ? o : 0] +=",
        "host", HOST_NEURON,
    ),
    Mutant(
        "a quotient of a step without its correction", "snnfast/program/cuda_source.py",
        '"exact_quotient": "exact_quotient({}, {}, {})"', '"exact_quotient": "{0} * {2}"',
        "host", HOST_NEURON,
    ),
    Mutant(
        "wrong stride between steps", "csrc/cuda/scan.cuh",
        "const i64 x_bytes = p.x_stride * kBytes, s_bytes = p.neurons * kBytes;",
        "const i64 x_bytes = p.x_stride * kBytes, s_bytes = (p.neurons + 1) * kBytes;",
        "host", HOST_LIF,
    ),
    Mutant(
        "removed barrier before sums over slots", "csrc/cuda/norm_sums.cuh",
        "  __syncthreads();\n  slots.each(", "  slots.each(",
        "proof", ("test_layers and norm_lif and T4 and float32 and cuda",),
    ),
    Mutant(
        "removed barrier within a sum", "csrc/cuda/norm_totals.cuh",
        "    __syncthreads();\n", "",
        "proof", ("test_layers and norm_lif and T4 and float32 and cuda",),
    ),
    Mutant(
        "removed barrier, seen on the host", "csrc/cuda/norm_lif.cuh",
        "  __syncthreads();\n", "",
        "host", HOST_NORM,
    ),
    Mutant(
        "barrier that not all threads reach", "csrc/cuda/norm_totals.cuh",
        "    __syncthreads();\n    if (int(threadIdx.x) >= half) continue;\n",
        "    if (int(threadIdx.x) >= half) continue;\n    __syncthreads();\n",
        "proof", ("test_layers and norm_lif and T4 and float32 and cuda",),
    ),
    Mutant(
        "missing accumulation over tiles", "csrc/cuda/norm_sums.cuh",
        "    for (int j = 0; j < kPart; ++j) to.value[j] += value[j];",
        "    for (int j = 0; j < kPart; ++j) to.value[j] = 0 * value[j];",
        "host", HOST_NORM,
    ),
    Mutant(
        "last elements of a byte are lost", "csrc/cuda/spikes.cuh",
        "      if (j >= count) continue;", "      if (j + 1 >= count) continue;",
        "host", HOST_SPIKES,
    ),
    Mutant(
        "warps' sums read without a barrier", "csrc/cuda/distill_row.cuh",
        "    __syncthreads();\n    value = of_warps", "    value = of_warps",
        "proof", ("test_others and loss and float32 and cuda",),
    ),
    Mutant(
        "a word less per access", "csrc/cuda/io.cuh",
        "      store_16_bytes(p + k, w);", "      store_element(p + k, value[k]);",
        "host", HOST_LIF,
    ),
]  # fmt: skip


def copy_of_the_tree(to: Path) -> None:
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "results", "fixtures")
            shutil.copytree(source, to / part, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, to / part)


def apply(mutant: Mutant, root: Path) -> None:
    path = root / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)} places"
    path.write_text(text.replace(mutant.old, mutant.new))


def run(mutant: Mutant) -> subprocess.CompletedProcess:
    """Its check in a copy of the tree that has it."""
    with tempfile.TemporaryDirectory() as folder:
        copy_of_the_tree(Path(folder))
        apply(mutant, Path(folder))
        more, *options = CHECKS[mutant.check]
        path = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | more | {"PYTHONPATH": os.pathsep.join(path)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += [*options, *mutant.tests]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def verdict(mutant: Mutant) -> str:
    """Caught, and by which test. A run that did not come to its tests, or a proof that did not come
    to its end, says nothing."""
    done = run(mutant)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    found = mutant.check != "proof" or any(word in done.stdout for word in RACES)
    if done.returncode == 1 and failed and found:
        return f"caught: {mutant.name}: {failed[0].removeprefix('FAILED ')}"
    if done.returncode < 0:  # it wrote over what is not its own
        return f"caught: {mutant.name}: signal {-done.returncode}"
    if done.returncode == 0:
        return f"LIVES: {mutant.name}"
    return f"not run: {mutant.name}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if all(word in m.name for word in words)]
    lives = 0
    for mutant in chosen:
        found = verdict(mutant)
        lives += not found.startswith("caught")
        print(found, flush=True)
    return int(lives > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
