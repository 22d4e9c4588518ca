"""Networks written for other packages, before and after one line: snnfast.accelerate, multi_step.

    python benchmarks/bench_dropin.py            # CPU, or CUDA where there is one: about 4 minutes
    python benchmarks/bench_dropin.py --quick    # under a minute

The networks have the structure of the published ones (dropin_networks.py): a Spikformer and an
SEW-ResNet-18 of SpikingJelly's nodes, changed by snnfast.accelerate, and the convolutional network
of snnTorch's sixth tutorial, run by snnfast.interop.snntorch.multi_step. Measured per network:
  neurons   all its neurons, forward + backward, each on what reached it in a training step
  step      the training step: forward, loss, backward, SGD; bytes kept and at the peak, above
            parameters, gradients and momenta; for SpikingJelly's networks with fuse=True, too, by
            which batch norms and their neurons are one pass
The same weights before and after; what does not give the same spikes, or gradients further off than
the gate of dropin_case.py allows, gets no speed. Writes bench_dropin.json and bench_dropin.png to
benchmarks/results/<device>/.
"""

import run

if __name__ == "__main__":
    run.main("dropin", __doc__)
