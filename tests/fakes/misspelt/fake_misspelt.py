"""A plugin that implements a hook that does not exist."""

from lens_core.hookspecs import hookimpl


@hookimpl
def lens_captionors():
    return []
