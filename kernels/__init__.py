"""The Triton kernels, imported and installed as ``snnfast.kernels``."""

raise ImportError(
    "kernels: this folder of snnfast's checkout is no package of its own; import snnfast.kernels",
    name=__name__,
)
