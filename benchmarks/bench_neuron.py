"""Any neuron, forward and backward: each of snnfast.neurons against the loop and the peers' own.

    python benchmarks/bench_neuron.py            # CPU, or CUDA where there is one: about 10 minutes
    python benchmarks/bench_neuron.py --quick    # under a minute
    python benchmarks/bench_neuron.py --neurons lif,synaptic --steps 4

Measured per (neuron, shape, dtype, T), as bench_lif.py does: kernels on preallocated outputs,
training through autograd, inference, bytes kept. A CPU runs a program in two ways, compiled and
interpreted, which are two rows; the program of lif stands beside the tuned snnfast.lif. The others
are the definition in a loop of PyTorch, that loop through torch.compile, the module of the package
that the neuron is known from, and on a GPU SpikingJelly's FlexSN. GB/s are those of the floor, 2b
forward and 3b backward. What does not give the spikes and gradients of the loop gets no speed.
Writes bench_neuron.json and bench_neuron.png to benchmarks/results/<device>/.
"""

import run

if __name__ == "__main__":
    run.main("neuron", __doc__)
