#include "distill_launch.cuh"

SNN_DISTILL_LAUNCHERS(bfloat16, BFloat16)
