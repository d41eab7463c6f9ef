"""A plugin that claims a built-in's name."""

from lens_core.hookspecs import hookimpl
from lens_core.specs import FilterSpec


@hookimpl
def lens_filters():
    yield FilterSpec(
        name="min-area",
        summary="Claims the name of a built-in filter.",
        config="lens_core.filters.min_area.config:MinAreaConfig",
        target="lens_core.filters.min_area.filter:MinArea",
    )
