"""Packages that need not be there, imported where they are used."""

import importlib


def require(module: str, extra: str = "train"):
    """Import ``module``; where it is missing, say which command installs it (ImportError)."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise ImportError(
            f'{package} is not installed: pip install "snnfast[{extra}]"', name=package
        ) from error
