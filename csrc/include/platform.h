// What lets one header serve nvcc, NVRTC and a plain host compiler, and the scalar operations that
// the formulas are written in. Vector types (csrc/cpu/lanes.h) overload the same names.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define SNN_HD __host__ __device__ __forceinline__
#define SNN_OUTLINE SNN_HD
#define SNN_UNROLL _Pragma("unroll")  // an array that is indexed at run time leaves the registers
#else
#define SNN_HD inline __attribute__((always_inline))
#define SNN_OUTLINE __attribute__((noinline))
#define SNN_INLINE __attribute__((always_inline))
#define SNN_UNROLL
#endif

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

// Each instruction set of the CPU compiles these headers in a namespace of its own, so that the
// linker cannot give an older machine a function that was compiled for a newer one.
#if !defined(SNN_ISA)
#define SNN_ISA generic
#endif

namespace snnfast {
inline namespace SNN_ISA {

#if defined(__CUDA_ARCH__)
SNN_HD float abs_(float x) { return fabsf(x); }
// The approximate instructions, denormals flushed: some 2 ulp, in gradients only.
SNN_HD float exp2_(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
SNN_HD float exp_(float x) { return exp2_(x * 1.44269504f); }
SNN_HD float exp_scaled_(float x, float by) { return exp2_(x * (by * 1.44269504f)); }
SNN_HD float pow_(float x, float y) {
  asm("lg2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return exp2_(x * y);
}
SNN_HD float divide_(float a, float b) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(b));
  return a * b;
}
SNN_HD float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SNN_HD float fma_unless_nan_(float a, float b, float c) {
  asm("{ .reg .pred p; setp.num.f32 p, %1, %1; @p fma.rn.f32 %0, %1, %2, %0; }"
      : "+f"(c)
      : "f"(a), "f"(b));
  return c;
}
SNN_HD float mad_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SNN_HD float reciprocal_(float x) { return __frcp_rn(x); }
SNN_HD float sqrt_(float x) { return __fsqrt_rn(x); }
SNN_HD float log_(float x) { return logf(x); }
#else
template <class R>
SNN_HD R abs_(R x) {
  return std::fabs(x);
}
template <class R>
SNN_HD R exp_(R x) {
  return std::exp(x);
}
template <class R>
SNN_HD R log_(R x) {
  return std::log(x);
}
template <class R>
SNN_HD R sqrt_(R x) {
  return std::sqrt(x);
}
template <class R>
SNN_HD R pow_(R x, R y) {
  return std::pow(x, y);
}
template <class R>
SNN_HD R fma_(R a, R b, R c) {
  return std::fma(a, b, c);
}
template <class R>
SNN_HD R divide_(R a, R b) {
  return a / b;
}
// fma(a, b, c), or c where a is NaN.
template <class R>
SNN_HD R fma_unless_nan_(R a, R b, R c) {
  return a == a ? fma_(a, b, c) : c;
}
// exp(x by), `by` the same for all lanes.
template <class V, class R>
SNN_HD V exp_scaled_(V x, R by) {
  return exp_(x * V(by));
}
// a b + c in gradients, where one rounding or two make no difference: fused where that is faster.
template <class V>
SNN_HD V mad_(V a, V b, V c) {
  return a * b + c;
}
template <class R>
SNN_HD R reciprocal_(R x) {
  return R(1) / x;
}
#endif

template <class V>
SNN_HD V select(bool mask, V a, V b) {
  return mask ? a : b;
}

// The larger one; a where b is NaN.
template <class V>
SNN_HD V larger_(V a, V b) {
  return select(a < b, b, a);
}

}  // namespace SNN_ISA
}  // namespace snnfast
