"""One training step of ResNet-18 with the TWKD objective: ours and the peers side by side.

    python benchmarks/bench_train.py            # CPU, or CUDA where there is one
    python benchmarks/bench_train.py --quick    # seconds: 8x8 images, T = 2, float32

Measured per (dtype, T) at CIFAR's shape, the teacher's logits given: forward, loss, backward and
SGD with momentum and weight decay. Images per second; bytes kept between forward and backward, and
at the peak, both above parameters, gradients and momenta; and the loss of the first step.

Contenders, all with the same weights: snnfast.models' resnet18 inside packed_spikes(); the same
network from SpikingJelly's modules; from torch's, with a loop over time in each layer of neurons;
the last through torch.compile. And those that give time for memory: SpikingJelly's network under
its memopt, on CUDA at all four levels, of which a CPU has the first; ours under snnfast.nn.plan,
once within the peak that memopt's first level has, once for 0.15 of the bytes it keeps without a
plan. All run the stem's convolution once for the static image. Half precision is autocast's. What
fails the gate of train_gate.py gets no speed: loss and gradients of the first step in float32 must
be the loop's where rounding cannot move a spike, to 1e-5 and 1e-3, and the loss of the whole batch
must be near it ("change"). On CUDA everything is measured contiguous and channels-last. Where a
step is too slow to be timed (bfloat16 on a CPU without instructions for it), memory is that of one
image. Writes bench_train.json and bench_train.png to benchmarks/results/<device>/.
"""

import run

if __name__ == "__main__":
    run.main("train", __doc__)
