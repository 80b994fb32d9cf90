"""Optional packages."""

import importlib


def needed(module, purpose):
    """The module of an optional package.  Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ValueError(f"{purpose} needs {package}: pip install {package}") from None
