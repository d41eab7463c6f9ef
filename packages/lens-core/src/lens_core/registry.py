"""The registry: every usable component by kind and name, as a value that is passed around.

    registry = load_registry()
    config = registry.parse("captioners", {"type": "scene-graph", "style": "dense"})
    captioner = registry.build("captioners", config)

`build` is the one place where a config becomes an object.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_core.errors import MissingExtraError, PluginError, UnknownComponentError
from lens_core.plugins import Offer, Plugin, Problem, find_plugins
from lens_core.specs import KINDS, ComponentSpec, pip_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lens_core.config.base import ComponentConfig

__all__ = ["Catalog", "Registry", "clash_message", "load_registry", "registry_of", "singular"]


@dataclass(frozen=True)
class Catalog(Mapping[str, Offer]):
    """The components of one kind by name; asking for one that is absent or contested raises a `LensError`."""

    kind: str
    offers: Mapping[str, tuple[Offer, ...]]
    problems: tuple[Problem, ...]

    def __getitem__(self, name: str) -> Offer:
        if name not in self.offers:
            raise UnknownComponentError(self._unknown(name))
        first, *others = self.offers[name]
        if others:
            raise PluginError(clash_message(self.kind, self.offers[name]))
        return first

    def __contains__(self, name: object) -> bool:
        return name in self.offers

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.offers))

    def __len__(self) -> int:
        return len(self.offers)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.offers, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        known = ", ".join(self) or "none"
        broken = "".join(f"; note: {problem}" for problem in self.problems)
        return f"there is no {singular(self.kind)} {name!r}{hint}; installed: {known}{broken}"


@dataclass(frozen=True)
class Registry:
    """What is installed: one `Catalog` per kind, the plugins, and what is wrong with some of them."""

    catalogs: Mapping[str, Catalog]
    plugins: tuple[Plugin, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __getitem__(self, kind: str) -> Catalog:
        return self.catalogs[kind]

    def spec(self, kind: str, name: str) -> ComponentSpec:
        """The spec of a component.

        Raises:
            UnknownComponentError: nothing of that name is installed; the message suggests and lists.
            PluginError: two plugins offer the name.
        """
        found = self.catalogs[kind][name].spec
        assert isinstance(found, ComponentSpec)
        return found

    def parse(self, kind: str, value: str | Mapping[str, Any]) -> ComponentConfig:
        """Validate a component's block with the component's own config model.

        Args:
            kind: such as "captioners".
            value: a bare name, or a mapping with the name under `type`.

        Raises:
            UnknownComponentError, PluginError, MissingExtraError: see `spec`.
            pydantic.ValidationError: the block is wrong.
        """
        block = {"type": value} if isinstance(value, str) else dict(value)
        if not isinstance(block.get("type"), str):
            raise UnknownComponentError(
                f"a {singular(kind)} needs a 'type'; installed: {', '.join(self.catalogs[kind])}"
            )
        model = self.spec(kind, block["type"]).load_config()
        return model.model_validate(block, context={"registry": self})  # type: ignore[return-value]

    def build(self, kind: str, config: ComponentConfig, **runtime: Any) -> Any:
        """Import a component's implementation and call it with its config and the run-time objects it needs.

        Raises:
            MissingExtraError: a library is not installed.
        """
        return self.spec(kind, config.type).load_target()(config, **runtime)

    def require_libraries(self, kind: str, name: str) -> None:
        """Check, without importing anything, that the distributions of a component's extra are installed.

        Raises:
            MissingExtraError: one is not; the message carries the pip line.
        """
        spec = self.catalogs[kind][name].spec
        for library in _libraries(spec.extra) if spec.extra else ():
            try:
                importlib.metadata.distribution(library)
            except importlib.metadata.PackageNotFoundError:
                raise MissingExtraError(
                    f"the {singular(kind)} {name!r} needs the library {library!r}, which is not installed; "
                    f"install it with: {pip_line(spec.extra or '')}"
                ) from None


def load_registry() -> Registry:
    """Open the installed plugins and sort what they offer."""
    plugins, offers, problems = find_plugins()
    return registry_of(offers, plugins=plugins, problems=problems)


def registry_of(
    offers: Iterable[Offer], *, plugins: Iterable[Plugin] = (), problems: Iterable[Problem] = ()
) -> Registry:
    """A registry of the given offers; names that several plugins claim become problems."""
    by_kind: dict[str, dict[str, tuple[Offer, ...]]] = {kind: {} for kind in KINDS}
    for offer in offers:
        names = by_kind[offer.kind]
        names[offer.spec.name] = (*names.get(offer.spec.name, ()), offer)
    loading = tuple(problems)
    clashes = tuple(
        Problem(plugin=rivals[-1].plugin, message=clash_message(kind, rivals))
        for kind, names in by_kind.items()
        for rivals in names.values()
        if len(rivals) > 1
    )
    catalogs = {kind: Catalog(kind, names, loading) for kind, names in by_kind.items()}
    return Registry(catalogs, tuple(plugins), loading + clashes)


def clash_message(kind: str, rivals: tuple[Offer, ...]) -> str:
    """Who claims one name, and the way out."""
    who = " and ".join(str(offer.plugin) for offer in rivals)
    return (
        f"the {singular(kind)} {rivals[0].spec.name!r} is offered by {who}; "
        f"uninstall one, or leave one out with LENS_DISABLE_PLUGINS={rivals[-1].plugin.name}"
    )


def singular(kind: str) -> str:
    """`text_encoders` → `text encoder`, for messages."""
    return kind.removesuffix("s").replace("_", " ")


def _libraries(extra: str) -> list[str]:
    """Names of the distributions that `package[extra,…]` asks for, read from the package's metadata."""
    match = re.fullmatch(r"([\w.-]+)(?:\[([\w.,-]+)\])?", extra)
    if match is None:
        return []
    package, wanted = match[1], set((match[2] or "").split(","))
    try:
        requirements = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return [package]
    names = []
    for requirement in requirements:
        marker = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        if marker and marker[1] in wanted:
            names.append(re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0])
    return names
