"""Reading the autoencoders of diffusers, strictly: diffusers itself only warns of missing weights."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open

from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["load_vae", "locate"]

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([\w./-]+))?")


def locate(path: str) -> tuple[str, str | None]:
    """Where a config's `path` leads: a folder, or a hub id and a folder in it.

    Raises:
        ArtifactError: it is neither, or the folder holds no autoencoder.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        for candidate in (folder, folder / "vae"):
            if (candidate / "config.json").is_file():
                return str(candidate), None
        raise ArtifactError(f"{path} holds no autoencoder: it has neither config.json nor vae/config.json")
    match = _HUB_ID.fullmatch(path)
    if match is None:
        raise ArtifactError(f"{path} is no folder, and no hub id of the form owner/name or owner/name/folder")
    return match[1], match[2]


def load_vae(vae_class: Any, where: str, subfolder: str | None, *, dtype: torch.dtype | None = None) -> Any:
    """An autoencoder of diffusers, frozen, on the CPU.

    Args:
        vae_class: its class.
        where: a folder, or a hub id.
        subfolder: of the hub id.
        dtype: of the weights; by default as stored in a folder, float32 from the hub. float16 becomes float32, unless
            the autoencoder's config says that it can do with float16: most overflow there.

    Raises:
        ArtifactError: it is absent, damaged, or of another class; the message names the file or the key.
    """
    name = f"{where}/{subfolder}" if subfolder else where
    place = {"subfolder": subfolder} if subfolder else {}
    try:
        with _quiet():
            if (file := Path(where, _WEIGHTS)).is_file():
                stored = _stored_dtype(file)  # in any case: it shows whether the file is whole
                dtype = dtype or stored
            config = vae_class.load_config(where, **place)
            found = config.get("_class_name", vae_class.__name__)
            if found != vae_class.__name__:
                raise ArtifactError(f"{name}/config.json is of an {found}, not of an {vae_class.__name__}")
            if dtype == torch.float16 and config.get("force_upcast", True):
                dtype = torch.float32
            vae, info = vae_class.from_pretrained(where, use_safetensors=True, output_loading_info=True, **place)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        # diffusers checks no config: what a wrong one raises depends on where it first hurts
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        place_it = "cannot be read" if Path(where).is_dir() else "is no folder here, and cannot be had from the hub"
        raise ArtifactError(f"the autoencoder {name} {place_it}: {reason}") from error
    for problem, keys in (("is missing", info["missing_keys"]), ("is unknown", info["unexpected_keys"])):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise ArtifactError(f"the weights of {name} do not fit its config: {sorted(keys)[0]!r} {problem}{more}")
    for part, module in vae.named_children():
        if part != "bn":  # statistics of the latent space, no weights: they keep float32
            module.to(dtype)
    return vae.eval().requires_grad_(False)


def _stored_dtype(file: Path) -> torch.dtype | None:
    """Of the weights, by the first of them."""
    try:
        with safe_open(file, "pt") as weights:
            keys = [key for key in list(weights.keys()) if not key.startswith("bn.")]
            return weights.get_tensor(keys[0]).dtype if keys else None
    except SafetensorError as error:
        raise ArtifactError(f"{file} is damaged or truncated: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers would warn of is an error here, or of no matter."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(before)
