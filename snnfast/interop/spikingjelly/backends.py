"""The names of backends that scripts ask for. All of them run the same: on the kernels of snnfast,
whose own backend is chosen by the tensor's device or by ``snnfast.backend``."""

BACKENDS = ("torch", "cupy", "triton", "lava")


def check_backend(backend: str) -> None:
    """Refuse a name that no version of SpikingJelly has; none of them needs a package."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
