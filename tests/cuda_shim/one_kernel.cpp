// One kernel by itself, as NVRTC would get it: SNN_HEADER, SNN_KERNEL and what names its
// configuration.
#include SNN_HEADER

extern "C" int shim_run(unsigned blocks, unsigned threads, unsigned shared, void** args) {
  return cudaLaunchKernel(SNN_KERNEL, dim3(blocks), dim3(threads), args, shared, nullptr);
}
