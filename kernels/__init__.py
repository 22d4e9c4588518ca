"""The Triton kernels, installed as ``snnfast.kernels``. They import triton and each other only."""

if __name__ != "snnfast.kernels":
    raise ImportError(
        f"this folder is the package snnfast.kernels, not {__name__}: import snnfast.kernels, and "
        "install snnfast (pip install -e .) to work from its repository"
    )
