"""A plugin with a few components, for tests of the runner, the config and the registry."""

from lens_core.hookspecs import hookimpl
from lens_core.specs import CommandSpec, DatasetSpec, FilterSpec, StageSpec


@hookimpl
def lens_stages():
    yield StageSpec(
        name="numbers",
        summary="Writes numbers, slowly, and goes on where it was cut off.",
        config="fake_good_config:NumbersConfig",
        target="fake_good_stages:numbers",
        makes="numbers",
    )
    yield StageSpec(
        name="total",
        summary="Adds up the numbers of earlier stages.",
        config="fake_good_config:TotalConfig",
        target="fake_good_stages:total",
        takes=("numbers",),
        makes="total",
    )


@hookimpl
def lens_filters():
    yield FilterSpec(
        name="needs-extra",
        summary="Needs a library that nobody has installed.",
        config="fake_good_config:PlainConfig",
        target="fake_good_missing_library:Filter",
        extra="lens_fake_good[extra]",
    )


@hookimpl
def lens_datasets():
    yield DatasetSpec(
        name="lost",
        summary="Its implementation does not exist.",
        config="fake_good_config:LostConfig",
        target="fake_good_nowhere:Lost",
    )


@hookimpl
def lens_commands():
    yield CommandSpec(name="hello", summary="Says hello.", target="fake_good_stages:app")
