"""BatchNorm + LIF, alone and with convolutions around it: ours and the peers side by side.

    python benchmarks/bench_block.py            # CPU, or CUDA where there is one: under 6 minutes
    python benchmarks/bench_block.py --quick    # under a minute

In training mode, forward + backward, at the shapes of a ResNet-18's four stages. Per (C x H x W, T,
dtype), b bytes per element of what is normalised:
  passes            ours, pass by pass on preallocated outputs
  part              BatchNorm + LIF: statistics b, apply 2b, backward 5b
  part + residual   with spikes added between the two: b, 3b, 7b
  block             conv3x3 - BN - LIF: 6b more for the convolution
  residual block    conv - BN - LIF - conv - BN - add - LIF
  memory            bytes kept between forward and backward, and at the peak, the inputs included
                    that are kept or alive; per element of what is normalised, in both layers
GB/s are these bytes over the time, for all contenders, whatever they really move; the share is that
of a copy_ of the same tensor in the same rounds (of the floor's bytes at copy speed, that is).

Contenders: snnfast.norm_lif; the same inside packed_spikes(), which keeps spikes as bits; and
BatchNorm2d with snnfast.lif, with SpikingJelly's LIFNode, and with a loop over time, the last
through torch.compile as one graph. In the blocks the convolutions are torch's for all. What fails
the gate of block_case.py gets no speed. Where a convolution is too slow to be timed (bfloat16 on a
CPU without instructions for it), the blocks' memory is measured on one image. Writes
bench_block.json and bench_block.png to benchmarks/results/<device>/.
"""

import run

if __name__ == "__main__":
    run.main("block", __doc__)
