#include "launch.cuh"

SNN_LAUNCHERS(float16, Float16)
