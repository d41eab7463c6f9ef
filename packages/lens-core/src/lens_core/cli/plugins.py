"""What `lens plugins list` and `lens plugins show` print."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined

from lens_core.errors import UnknownComponentError
from lens_core.registry import singular
from lens_core.specs import KINDS, CommandSpec

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from lens_core.registry import Registry

__all__ = ["list_plugins", "show_plugin", "type_text"]


def list_plugins(registry: Registry, *, as_json: bool = False) -> str:
    """A table of components by kind; broken plugins, clashes and misspelt hooks last, a line each."""
    offers = [offer for kind in KINDS for _, rivals in sorted(registry[kind].offers.items()) for offer in rivals]
    if as_json:
        return json.dumps(
            {
                "plugins": [asdict(plugin) for plugin in registry.plugins],
                "components": [
                    {"kind": offer.kind, "plugin": offer.plugin.name, "distribution": offer.plugin.distribution}
                    | {"version": offer.plugin.version, **asdict(offer.spec)}
                    for offer in offers
                ],
                "problems": [
                    {
                        "plugin": problem.plugin.name,
                        "distribution": problem.plugin.distribution,
                        "message": problem.message,
                    }
                    for problem in registry.problems
                ],
            },
            indent=2,
        )
    name_width = max((len(offer.spec.name) for offer in offers), default=0)
    source = [f"{offer.plugin.distribution} {offer.plugin.version}" for offer in offers]
    source_width = max(map(len, source), default=0)
    lines: list[str] = []
    kind = ""
    for offer, origin in zip(offers, source, strict=True):
        if offer.kind != kind:
            kind = offer.kind
            lines += ["", kind.replace("_", " ")] if lines else [kind.replace("_", " ")]
        lines.append(f"  {offer.spec.name:{name_width}}  {origin:{source_width}}  {offer.spec.summary}")
    disabled = [plugin for plugin in registry.plugins if plugin.disabled]
    if disabled:
        lines += ["", "left out by LENS_DISABLE_PLUGINS", *(f"  {plugin}" for plugin in disabled)]
    if registry.problems:
        lines += ["", "problems", *(f"  {problem}" for problem in registry.problems)]
    return "\n".join(lines)


def show_plugin(registry: Registry, kind: str, name: str) -> str:
    """One component: who offers it, and its options.

    Raises:
        UnknownComponentError: no such kind or name.
    """
    plural = kind.replace("-", "_").replace(" ", "_")
    plural = plural if plural in KINDS else f"{plural}s"
    if plural not in KINDS:
        kinds = ", ".join(singular(known) for known in KINDS)
        raise UnknownComponentError(f"there is no kind {kind!r}; kinds: {kinds}")
    offer = registry[plural][name]
    lines = [f"{singular(plural)} {name}: {offer.spec.summary}", f"  from {offer.plugin}"]
    if offer.spec.extra:
        lines.append(f"  libraries: {offer.spec.extra}")
    if isinstance(offer.spec, CommandSpec):
        return "\n".join([*lines, f"  see: lens {name} --help"])
    fields = {key: field for key, field in offer.spec.load_config().model_fields.items() if key != "type"}
    lines.append("  options:" if fields else "  no options")
    for key, field in fields.items():
        lines.append(f"    {key}: {type_text(field)} = {_default(field)}")
        if field.description:
            lines.append(f"        {field.description}")
    return "\n".join(lines)


def type_text(field: FieldInfo) -> str:
    """A field's type in words that a YAML author knows, with its bounds."""
    bounds = []
    for mark in field.metadata:
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if getattr(mark, name, None) is not None:
                bounds.append(f"{sign} {getattr(mark, name)}")
        if hasattr(mark, "kind"):
            return singular(mark.kind)
    return _type(field.annotation) + (f" ({', '.join(bounds)})" if bounds else "")


def _type(annotation: Any) -> str:
    for mark in getattr(annotation, "__metadata__", ()):
        if hasattr(mark, "kind"):
            return singular(mark.kind)
    name = getattr(annotation, "__name__", None)
    arguments = getattr(annotation, "__args__", ())
    if name == "Literal" or str(annotation).startswith("typing.Literal"):
        return " | ".join(json.dumps(value) for value in arguments)
    if str(annotation).startswith("typing.Annotated"):
        return _type(annotation.__origin__)
    if arguments and name in {"list", "tuple", "dict", "Sequence", "Mapping"}:
        return f"{name} of {', '.join(_type(argument) for argument in arguments if argument is not ...)}"
    if arguments:
        return " | ".join(_type(argument) for argument in arguments)
    words = {"str": "text", "int": "integer", "float": "number", "bool": "true | false", "NoneType": "null"}
    return words.get(name or "", name or str(annotation))


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        default: Any = field.get_default(call_default_factory=True, validated_data={})
    elif field.default is PydanticUndefined:
        return "(required)"
    else:
        default = field.default
    return json.dumps(default.model_dump(mode="json") if hasattr(default, "model_dump") else default, default=str)
