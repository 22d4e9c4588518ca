"""LIF, forward and backward: our backends and the installed peers side by side in one run.

    python benchmarks/bench_lif.py            # CPU, or CUDA where there is one: under 10 minutes
    python benchmarks/bench_lif.py --quick    # under a minute

Measured per (shape, dtype, T):
  kernels    one launch on preallocated outputs, against copy_ (forward: reads x, writes s, 2b bytes
             per neuron and timestep) and torch.add(out=) (backward: reads x and ds, writes dx, 3b)
  training   s = layer(x); s.backward(ds), 5b, against every peer and a clone/add probe
  inference  s = layer(x) without gradients, 2b
  memory     bytes that the layer keeps for its backward, and its ops or launches
GB/s are these bytes over the time, for all contenders, whatever they really move. The states that
are kept at the borders of segments for T > 8 are not counted. What fails the gate of lif_case.py
gets no speed. Writes bench_lif.json and bench_lif.png to benchmarks/results/<device>/.
"""

import run

if __name__ == "__main__":
    run.main("lif", __doc__)
