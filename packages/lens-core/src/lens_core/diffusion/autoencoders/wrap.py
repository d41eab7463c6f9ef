"""From a module of diffusers to one of our autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_core.errors import ConfigError
from lens_core.specs import load_dotted

if TYPE_CHECKING:
    from torch import nn

    from lens_core.contracts.diffusion import Autoencoder

__all__ = ["wrap_vae"]

_HERE = "lens_core.diffusion.autoencoders"
_WRAPPERS = {
    "AutoencoderKLFlux2": f"{_HERE}.flux2.autoencoder:Flux2Autoencoder",
    "AutoencoderKL": f"{_HERE}.autoencoder_kl.autoencoder:KLAutoencoder",
}


def wrap_vae(vae: nn.Module) -> Autoencoder:
    """The autoencoder around a module of diffusers, which is neither copied nor changed.

    Raises:
        ConfigError: a module of a class that Lens has no tokens for.
    """
    for base in type(vae).__mro__:
        if base.__name__ in _WRAPPERS:
            wrapper: Any = load_dotted(_WRAPPERS[base.__name__], asked_by="vae", extra="lens-core[diffusion]")
            wrapped: Autoencoder = wrapper.wrap(vae)
            return wrapped
    raise ConfigError(f"a vae of the class {type(vae).__name__} is not known; known: {', '.join(_WRAPPERS)}")
