"""Triton kernels compiled ahead of time, with no GPU: the machine code of a call that a backend
makes, tiles and flags included."""

import _sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


def compiled(call, arch=90):
    """What Triton's launcher compiles for such a call: pointers that 16 divides, and integers
    specialised where the kernel lets it."""
    values = dict(zip(call.kernel.arg_names, call.arguments)) | call.constants
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(call.kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not (parameter.do_not_specialize or parameter.annotation_type):
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = parameter.annotation_type or ("i32" if value < 2**31 else "i64")
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    names = call.kernel.arg_names
    options = {name: value for name, value in call.constants.items() if name not in names}
    assert options["enable_fp_fusion"] is False
    source = ASTSource(call.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def compile_call(call, arch=90) -> _sass.Kernel:
    (kernel,) = _sass.read(compiled(call, arch).asm["cubin"]).values()
    return kernel
