"""Model profiles: what is known of a model before the first request, as dated data files beside this module.

A model is never a bare name here: a profile says where it is served, which parameters it takes, how it counts an
image, what its lanes cost, and when it shuts down. An unknown price is refused, never counted as zero.

    profile = load_profile("gpt-6-luna", base_url=None, folder=None)
    profile.image_tokens(1024, 768)
    profile.cost(Usage(input_tokens=1_200, output_tokens=150), "flex")
"""

from lens_caption.profiles.load import PROFILES_VARIABLE, built_in_profiles, list_profiles, load_profile
from lens_caption.profiles.rules import estimate_text_tokens, patch_tokens, tile_tokens
from lens_caption.profiles.schema import (
    LANES,
    Lane,
    Price,
    Profile,
    RetiredModelError,
    UnknownModelError,
    UnknownPriceError,
    Usage,
)

__all__ = [
    "LANES",
    "PROFILES_VARIABLE",
    "Lane",
    "Price",
    "Profile",
    "RetiredModelError",
    "UnknownModelError",
    "UnknownPriceError",
    "Usage",
    "built_in_profiles",
    "estimate_text_tokens",
    "list_profiles",
    "load_profile",
    "patch_tokens",
    "tile_tokens",
]
