"""What a caption cost, from what its provenance says; a price that nobody knows is unknown, not zero."""

from __future__ import annotations

import functools
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from lens_caption.profiles import Usage, load_profile
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["count", "dollars"]

_LANES = {"flex": "flex", "batch": "batch"}


def dollars(provenance: Mapping[str, Any]) -> Decimal | None:
    """US dollars; 0 where no tokens were bought, None where the price is not known."""
    stated = provenance.get("cost_usd")
    if stated is not None:
        try:
            return Decimal(str(stated))
        except InvalidOperation:
            return None
    tokens = (count(provenance, "input_tokens"), count(provenance, "output_tokens"))
    if not any(tokens):
        return Decimal(0)
    model = provenance.get("served_model") or provenance.get("asked_model")
    lane = _LANES.get(str(provenance.get("lane") or provenance.get("service_tier")), "standard")
    price = _price(str(model), str(provenance["base_url"]) if provenance.get("base_url") else None, lane)
    if price is None:
        return None
    cached = count(provenance, "cached_input_tokens")
    usage = Usage(input_tokens=tokens[0], output_tokens=tokens[1], cached_input_tokens=cached)
    return price.cost(usage)  # type: ignore[no-any-return]


def count(provenance: Mapping[str, Any], name: str) -> int:
    """A number of tokens; 0 if the provenance does not say."""
    value = provenance.get(name, 0)
    return int(value) if isinstance(value, int | float) and value > 0 else 0


@functools.cache
def _price(model: str, base_url: str | None, lane: str) -> Any:
    try:
        return load_profile(model, base_url=base_url, folder=None).price(lane)  # type: ignore[arg-type]
    except ConfigError:
        return None
