"""The Triton kernels. They lie beside this file in an installed wheel, and in the folder
``kernels`` at the top of a checkout; they import triton and each other only."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
# Only in a checkout: above an installed snnfast, `kernels` would be somebody else's package.
if not (_HERE / "lif.py").exists():
    __path__.append(str(_HERE.parent.parent / "kernels"))
