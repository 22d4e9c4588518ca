#include "norm_launch.cuh"

SNN_NORM_LAUNCHERS(bfloat16, BFloat16)
