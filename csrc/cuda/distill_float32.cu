#include "distill_launch.cuh"

SNN_DISTILL_LAUNCHERS(float32, Float32)
