"""Find the profile of a model: the user's own folder first, then what Lens brings."""

from __future__ import annotations

import functools
import ipaddress
import os
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from lens_caption.profiles.schema import Profile, UnknownModelError
from lens_core.config.yaml import MarkedYaml, parse_yaml
from lens_core.errors import ConfigError

__all__ = ["PROFILES_VARIABLE", "built_in_profiles", "list_profiles", "load_profile"]

PROFILES_VARIABLE = "LENS_CAPTION_PROFILES"
"""Names the folder with the user's own profiles, where a captioner's config does not."""

_OPENAI_HOST = "api.openai.com"
_LOCAL = "local"
_PRIVATE_ENDINGS = (".local", ".lan", ".internal", ".localhost", ".home.arpa")


def load_profile(model: str, *, base_url: str | None, folder: Path | None) -> Profile:
    """The profile of a model at an endpoint.

    A profile of the user's own goes before a built-in one. A name that a built-in profile knows keeps its price on
    this machine and in this network too, where it may be a proxy that forwards to the provider; any other name there
    is a server of one's own, and free. Elsewhere an unknown name is an error.

    Args:
        model: the name in the request, such as "gpt-6-luna" or a dated snapshot of it.
        base_url: the endpoint; None is OpenAI's.
        folder: the user's profiles; None takes the folder that LENS_CAPTION_PROFILES names, if any.

    Raises:
        UnknownModelError: nothing describes the model at this endpoint.
        ConfigError: a profile of the user's is wrong, or its folder is not there.
    """
    host = (urlsplit(base_url).hostname or "") if base_url else _OPENAI_HOST
    for profile in _own(folder):
        if profile.describes(model) and profile.served_by(host):
            return profile
    private = _is_private(host)
    for profile in _built_in().values():
        if profile.model != _LOCAL and profile.describes(model) and (private or profile.served_by(host)):
            return profile
    if private:
        return _built_in()[_LOCAL]
    named = _like(model)
    start = named.model if named else "gpt-6-luna"
    raise UnknownModelError(
        f"no profile describes the model {model!r} at {host}, so its price is not known, and an unknown price is not "
        f"zero; write one that begins with 'like: {start}' and 'model: {model}', in a folder that {PROFILES_VARIABLE} "
        "or the captioner's 'profiles' names (docs: how-to/quote-a-run)"
    )


def list_profiles(folder: Path | None = None) -> list[Profile]:
    """Every profile, the user's own first."""
    return [*_own(folder), *built_in_profiles()]


def built_in_profiles() -> list[Profile]:
    """The profiles that Lens brings."""
    return list(_built_in().values())


@functools.cache
def _built_in() -> dict[str, Profile]:
    files = sorted(
        (file for file in resources.files(__package__).iterdir() if file.name.endswith(".yaml")),
        key=lambda file: file.name.removesuffix(".yaml"),
    )
    profiles = [_read(file.read_text(encoding="utf-8"), f"built in: {file.name}") for file in files]
    return {profile.model: profile for profile in profiles}


def _own(folder: Path | None) -> list[Profile]:
    named = folder or os.environ.get(PROFILES_VARIABLE)
    if not named:
        return []
    path = Path(named).expanduser()
    if not path.is_dir():
        who = "the captioner's 'profiles'" if folder else PROFILES_VARIABLE
        raise ConfigError(f"{who} names the folder {path}, which does not exist")
    files = sorted(file for file in path.iterdir() if file.suffix in {".yaml", ".yml"})
    return [_read(file.read_text(encoding="utf-8"), str(file)) for file in files]


def _read(text: str, file: str) -> Profile:
    marked = parse_yaml(text, file=file)
    if not isinstance(marked.data, dict):
        raise ConfigError("a profile is a mapping with 'model' and 'prices'", file=file, line=1)
    data = dict(marked.data)
    if "like" in data:
        data = _completed(data, marked)
    try:
        return Profile.model_validate({**data, "file": file})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = tuple(part for part in first["loc"] if part not in {"tiles", "patches"})
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(
            message, file=file, line=marked.line_of(path), key=".".join(map(str, path)) or None
        ) from error


def _completed(data: dict[str, Any], marked: MarkedYaml) -> dict[str, Any]:
    """What the file says, over what the built-in profile says that it is like."""
    name = str(data.pop("like"))
    other = _built_in().get(name)
    if other is None:
        known = ", ".join(_built_in())
        raise ConfigError(
            f"there is no built-in profile {name!r} (there is: {known})",
            file=marked.file,
            line=marked.line_of(("like",)),
            key="like",
        )
    inherited = other.model_dump(exclude={"names", "hosts", "weak", "file"})
    weak = {field: why for field, why in other.weak.items() if field not in data}
    return {**inherited, "weak": weak, **data}


def _like(model: str) -> Profile | None:
    """The built-in profile that the name reminds of: providers put a prefix before it, users a suffix behind it."""
    close = [profile for name, profile in _built_in().items() if name in model]
    return max(close, key=lambda profile: len(profile.model), default=None)


def _is_private(host: str) -> bool:
    """Whether a host is this machine or in this network: by address, or by a name that no public server has."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and ("." not in host or host.lower().endswith(_PRIVATE_ENDINGS))
    return address.is_private or address.is_loopback or address.is_link_local
