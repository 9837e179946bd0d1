"""Tapetum: night vision for sky surveys."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tapetum")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
