"""Lens core: plugins, configuration, storage, pipelines and the command line.

Importing this package loads nothing heavy. The torch rooms live in `lens_core.diffusion` and are
entered only when a pipeline names one of their components.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
