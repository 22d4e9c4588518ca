"""Distillation losses: our backends and eager and compiled PyTorch side by side in one run.

    python benchmarks/bench_distill.py            # CPU, or CUDA where there is one: under 4 minutes
    python benchmarks/bench_distill.py --quick    # under a minute

Measured per (objective, T x B x C, dtype), b bytes per logit:
  kernel    one launch on preallocated outputs, which reads the logits and writes their gradient,
            2b per logit; against copy_ of the logits, which moves the same
  training  loss(logits).backward(), 4b per logit: forward 2b, and 2b to scale the kept gradient
  forward   loss(logits) without gradients, b per logit
  memory    bytes that the loss keeps for its backward, and its ops or launches
GB/s are these bytes over the time, for all contenders, whatever they really move; TSSD has two
tensors of logits, and both count. What fails the gate of distill_case.py, 1e-5 in float32 against
float64 in value and gradient, gets no speed. Writes bench_distill.json and bench_distill.png to
benchmarks/results/<device>/.
"""

import run

if __name__ == "__main__":
    run.main("distill", __doc__)
