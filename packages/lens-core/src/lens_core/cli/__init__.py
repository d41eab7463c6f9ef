"""The `lens` command."""

from lens_core.cli.main import main

__all__ = ["main"]
