#include "norm_launch.cuh"

SNN_NORM_LAUNCHERS(float32, Float32)
