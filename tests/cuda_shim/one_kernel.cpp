// One kernel by itself, as NVRTC would get it: SNN_HEADER, SNN_KERNEL and what names its
// configuration.
#include SNN_HEADER

extern "C" int shim_run(unsigned blocks, unsigned threads, unsigned shared, void** args) {
  return cudaLaunchKernel(SNN_KERNEL, dim3(blocks), dim3(threads), args, shared, nullptr);
}

template <class... Args>
static void sizes_of(void (*)(Args...), std::int64_t* sizes) {
  ((*sizes++ = sizeof(Args)), ...);
}
extern "C" void shim_parameters(std::int64_t* sizes) { sizes_of(SNN_KERNEL, sizes); }
