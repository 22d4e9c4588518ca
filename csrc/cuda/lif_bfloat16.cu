#include "launch.cuh"

SNN_LAUNCHERS(bfloat16, BFloat16)
