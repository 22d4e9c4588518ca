#include "launch.cuh"

SNN_LAUNCHERS(float32, Float32)
