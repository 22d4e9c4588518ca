#include "distill_launch.cuh"

SNN_DISTILL_LAUNCHERS(float16, Float16)
