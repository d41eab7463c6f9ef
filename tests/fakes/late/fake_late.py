"""A plugin whose hook fails after its first spec."""

from lens_core.hookspecs import hookimpl


@hookimpl
def lens_filters():
    yield "not a spec"
