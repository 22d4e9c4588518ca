#include "norm_launch.cuh"

SNN_NORM_LAUNCHERS(float16, Float16)
