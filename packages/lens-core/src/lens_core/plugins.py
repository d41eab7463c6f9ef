"""Find, open and question the installed plugins, one by one, so that a broken one costs a line and no more.

A plugin is an entry point in the group `lens.plugins` whose value is a module. Its life here:

1. `LENS_DISABLE_PLUGINS=a,b` leaves entry points out by name; they show as disabled.
2. The module is imported. A failure is a `Problem`, and the next plugin is opened.
3. Its hook implementations are compared with `lens_core.hookspecs`: a misspelt one is a `Problem`.
4. Each implementation is called by itself, and its result is listed inside the same `try`, because a generator
   raises late. What it yields must be the spec type of its kind.

This module only loads. What the components are used for is the business of the registry and the pipelines.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import os
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from lens_core import hookspecs
from lens_core.specs import KINDS, CommandSpec, ComponentSpec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

__all__ = ["GROUP", "Offer", "Plugin", "Problem", "find_plugins"]

GROUP = "lens.plugins"


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """An entry point in the group `lens.plugins` and the distribution that brought it."""

    name: str
    module: str
    distribution: str
    version: str
    disabled: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a plugin, in one line."""

    plugin: Plugin
    message: str

    def __str__(self) -> str:
        return f"plugin {self.plugin}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One spec, and the plugin that offers it."""

    kind: str
    spec: ComponentSpec | CommandSpec
    plugin: Plugin


def find_plugins() -> tuple[list[Plugin], list[Offer], list[Problem]]:
    """Open every installed plugin and collect what they offer.

    Returns:
        the plugins by name, their offers (names may still clash), and what went wrong.
    """
    disabled = {name.strip() for name in os.environ.get("LENS_DISABLE_PLUGINS", "").split(",")}
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins: list[Plugin] = []
    offers: list[Offer] = []
    problems: list[Problem] = []
    for entry_point in sorted(_entry_points(), key=lambda found: (found.name, found.value)):
        distribution = entry_point.dist
        plugin = Plugin(
            name=entry_point.name,
            module=entry_point.value,
            distribution=distribution.name if distribution else "unknown",
            version=distribution.version if distribution else "?",
            disabled=entry_point.name in disabled,
        )
        plugins.append(plugin)
        if plugin.disabled:
            continue
        try:
            door = entry_point.load()
            manager.register(door, name=str(plugin))
        except Exception as error:  # a foreign module may raise anything while it is imported
            problems.append(Problem(plugin=plugin, message=f"cannot be loaded: {_one_line(error)}"))
            continue
        problems += [Problem(plugin=plugin, message=text) for text in _misspelt(manager, door)]
        for kind, implementation in _implementations(manager, door):
            try:
                offers += [_checked(kind, spec, plugin) for spec in implementation()]
            except Exception as error:  # likewise: a hook is foreign code
                problems.append(Problem(plugin=plugin, message=f"lens_{kind} failed: {_one_line(error)}"))
    if os.environ.get("LENS_TRACE_PLUGINS"):
        for offer in offers:
            sys.stderr.write(f"lens: {offer.plugin} offers {offer.kind}: {offer.spec.name}\n")
    return plugins, offers, problems


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    # An editable install seen through two sys.path entries lists its entry points twice.
    found = importlib.metadata.entry_points(group=GROUP)
    return {(point.name, point.value, point.dist.name if point.dist else ""): point for point in found}.values()


def _implementations(manager: pluggy.PluginManager, door: ModuleType) -> list[tuple[str, Any]]:
    found = []
    for kind in KINDS:
        caller = getattr(manager.hook, f"lens_{kind}")
        found += [(kind, impl.function) for impl in caller.get_hookimpls() if impl.plugin is door]
    return found


def _misspelt(manager: pluggy.PluginManager, door: ModuleType) -> list[str]:
    known = [f"lens_{kind}" for kind in KINDS]
    texts = []
    for name, function in inspect.getmembers(door, inspect.isfunction):
        if manager.parse_hookimpl_opts(door, name) is None or name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        line = function.__code__.co_firstlineno
        texts.append(f"implements {name!r} at {function.__code__.co_filename}:{line}, which is no hook of Lens{hint}")
    return texts


def _checked(kind: str, spec: object, plugin: Plugin) -> Offer:
    wanted = KINDS[kind]
    if not isinstance(spec, wanted):
        raise TypeError(f"yielded {spec!r}, not a {wanted.__name__}")
    return Offer(kind=kind, spec=spec, plugin=plugin)


def _one_line(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].filename}:{last[0].lineno})" if last else ""
    return " ".join(f"{type(error).__name__}: {error}".split()) + where
