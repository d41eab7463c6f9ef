"""What a receipt claims: read from an image or a JSON file, and believed in nothing but its form.

Receipts of `lens generate` and of `lens serve` are read alike; the former have fewer keys.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from lens_core import images
from lens_core.config.base import first_mistake
from lens_core.config.components import SamplerField  # noqa: TC001 (pydantic reads annotations at run time)
from lens_core.errors import ConfigError, ImageError
from lens_core.storage import urls
from lens_serve.images.encoders import ImageFormat  # noqa: TC001
from lens_serve.images.metadata import read_receipt
from lens_serve.provenance.receipt import sha256_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Claims", "read_claims"]

MAX_SIDE = 4096


class Lora(BaseModel):
    """A LoRA by its name, and how strongly it acts."""

    name: str
    scale: float = 1.0


class Claims(BaseModel):
    """The claims of a receipt, as far as they are needed to draw and compare; see the reference of formats."""

    rewritten_prompt: str | None = None
    negative: str | None = None
    prompt_sha256: str | None = None
    rewritten_sha256: str | None = None
    negative_sha256: str | None = None
    seed: int
    index: int = 0
    height: int | None = Field(None, gt=0, le=MAX_SIDE)
    width: int | None = Field(None, gt=0, le=MAX_SIDE)
    sampler: SamplerField
    guidance: float
    tier: str | None = None
    model: str | None = None
    dtype: str | None = None
    asked_dtype: str | None = None
    device: str | None = None
    threads: int | None = Field(None, gt=0, le=1024)
    lens: str | None = None
    versions: dict[str, str] = {}
    latent_sha256: str | None = None
    pixel_sha256: str | None = None
    format: ImageFormat = "png"
    quality: int = Field(100, ge=0, le=100)
    lora: Lora | None = None
    loras: list[str] = []
    start: dict[str, Any] | None = None
    image: str | None = None

    def asked(self) -> str | None:
        """The dtype that was asked for, of all parts. Where the receipt does not say, float32 was not asked for."""
        if "asked_dtype" in self.model_fields_set:
            return self.asked_dtype
        return None if self.dtype == "float32" else self.dtype

    def drawn_prompt(self, given: str | None) -> str:
        """The prompt that was drawn: the receipt's, or the one that is given, if its hash fits.

        Raises:
            ConfigError: it is missing, or another one.
        """
        if given is not None and sha256_of(given) == self.prompt_sha256 != self.rewritten_sha256:
            raise ConfigError("--prompt: this was typed, and then rewritten; give what was drawn (`revised_prompt`)")
        return _text(self.rewritten_prompt, self.rewritten_sha256, given, "--prompt")

    def drawn_negative(self, given: str | None) -> str:
        """Likewise of the negative prompt."""
        return _text(self.negative, self.negative_sha256, given, "--negative")

    def all_loras(self) -> list[Lora]:
        """Those that were used, in order."""
        return [self.lora] if self.lora else [Lora(name=name) for name in self.loras]


def read_claims(source: str) -> tuple[Claims, np.ndarray | None]:
    """A receipt's claims, and the pixels of the image that carried it, if one did.

    Args:
        source: a PNG, JPEG, WebP or JSON file.

    Raises:
        ConfigError: there is no receipt in it, or none that can be used.
        StorageError: it cannot be read.
    """
    data = urls.read_bytes(source)
    found: Any
    image_HW3 = None
    if data.lstrip().startswith(b"{"):
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source} is not valid JSON") from error
    else:
        found = read_receipt(data)
        if found is None:
            raise ConfigError(f"{source} carries no receipt of Lens: it never had one, or something took it off")
        try:
            image_HW3 = images.decode(data)
        except ImageError as error:
            raise ConfigError(f"{source}: {error}") from error
    try:
        return Claims.model_validate(found), image_HW3
    except ValidationError as error:
        key, message = first_mistake(error)
        raise ConfigError(f"{source}: its receipt cannot be used: {key}: {message}") from error


def _text(written: str | None, digest: str | None, given: str | None, option: str) -> str:
    text = written if given is None else given
    if text is None and digest not in (None, sha256_of("")):
        raise ConfigError(f"the receipt has only the hash of a text that was drawn: give the text with {option}")
    if digest not in (None, sha256_of(text or "")):
        raise ConfigError(f"{option if given is not None else 'the receipt'}: a text does not match its hash")
    return text or ""
