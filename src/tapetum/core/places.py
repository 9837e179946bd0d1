"""Where things live on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Downloads and imported models: ``$XDG_CACHE_HOME/tapetum``, by default ``~/.cache/tapetum``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tapetum"


def config_dir() -> Path:
    """User settings: ``$XDG_CONFIG_HOME/tapetum``, by default ``~/.config/tapetum``."""
    root = os.environ.get("XDG_CONFIG_HOME")
    return (Path(root) if root else Path.home() / ".config") / "tapetum"
