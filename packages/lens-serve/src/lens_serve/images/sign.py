"""Content Credentials (C2PA): a signature over the file that says a machine drew it, and who says so.

The certificate chain and key are the operator's. They are tried out at the start, on a picture of one pixel, so that a
wrong file is one line then and not the failure of every request later. No thumbnail is stored and nothing is verified
after signing: that would cost many times the signature, and 236 kB an image.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_core import __version__
from lens_core.errors import ConfigError, LensError, MissingExtraError
from lens_core.specs import pip_line
from lens_core.storage import urls
from lens_serve.images.png import encode_png

if TYPE_CHECKING:
    from pathlib import Path

    from lens_serve.config import OutputSettings

__all__ = ["SignError", "Signer"]

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_USAGES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.311.76.59.1.9", "1.3.6.1.4.1.62558.2.1")
"""Extended key usages that C2PA takes for signing: e-mail, documents, Microsoft's and its own. By itself the library's
reader, unlike its signer, knows the first only."""

_SETTINGS = {
    "version": 1,
    "trust": {"trust_config": "\n".join(_USAGES)},
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False},
}
_UNTRUSTED = "signingCredential.untrusted"
"""Whether a reader trusts an authority is the reader's affair."""


class SignError(LensError):
    """A file cannot be signed; it must not go out unsigned."""


class Signer:
    """Signs image files.

    Args:
        certificate: the chain in PEM, the signer's own first.
        key: its private key in PEM, not encrypted.

    Raises:
        ConfigError: they cannot be read or signed with.
        MissingExtraError: the library is missing.
    """

    def __init__(self, certificate: Path, key: Path):
        self._c2pa = _library()
        where = f"c2pa_certificate {certificate}, c2pa_key {key}"
        chain, secret = _read(certificate, "c2pa_certificate"), _read(key, "c2pa_key")
        try:
            algorithm, secret = _algorithm(secret)
            signer = self._c2pa.Signer.from_info(self._c2pa.C2paSignerInfo(algorithm, chain, secret, None))
            self._context = self._c2pa.Context.from_dict(_SETTINGS, signer=signer)
            faults = self._faults(self.sign(encode_png(np.zeros((1, 1, 3), np.uint8)), "image/png"))
        except (self._c2pa.C2paError, SignError, ValueError, TypeError) as error:
            raise ConfigError(f"{where}: images cannot be signed with these: {error}") from error
        if faults:
            raise ConfigError(f"{where}: what they sign is not valid: {', '.join(faults)}")

    @classmethod
    def of(cls, settings: OutputSettings) -> Signer | None:
        """The configured signer, if any.

        Raises:
            ConfigError: only one of the two files is given, or they cannot be signed with.
        """
        certificate, key = settings.c2pa_certificate, settings.c2pa_key
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            raise ConfigError("to sign images, give both c2pa_certificate and c2pa_key")
        return cls(urls.local_path(certificate), urls.local_path(key))

    def sign(self, data: bytes, mime_type: str, *, from_picture: bool = False) -> bytes:
        """The file with its credentials; everything in it is covered, the receipt too.

        Args:
            data: a PNG, JPEG or WebP file.
            mime_type: which of them.
            from_picture: whether somebody's picture was drawn on.

        Raises:
            SignError: the certificate has expired, for instance.
        """
        kind = "compositeWithTrainedAlgorithmicMedia" if from_picture else "trainedAlgorithmicMedia"
        action = {"action": "c2pa.created", "digitalSourceType": _SOURCE_TYPES + kind}
        manifest = {
            "claim_generator_info": [{"name": "Lens", "version": __version__}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        try:
            with self._c2pa.Builder(manifest, self._context) as builder:
                builder.sign(mime_type, io.BytesIO(data), signed)
        except self._c2pa.C2paError as error:
            raise SignError(f"the image cannot be signed: {error}") from error
        return signed.getvalue()

    def _faults(self, data: bytes) -> list[str]:
        """What a reader finds wrong with a signed PNG."""
        with self._c2pa.Reader("image/png", io.BytesIO(data), context=self._context) as reader:
            found = json.loads(reader.json())
        return [status["code"] for status in found.get("validation_status", []) if status["code"] != _UNTRUSTED]


def _library() -> Any:
    try:
        import c2pa  # noqa: PLC0415 (brought by the extra)
    except ImportError as error:
        raise MissingExtraError(f"signing images needs a library: {pip_line('lens-serve[c2pa]')}") from error
    return c2pa


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error


def _algorithm(pem: bytes) -> tuple[str, bytes]:
    """The algorithm that a private key signs by, and the key in the one format (PKCS #8) that the library reads.

    Raises:
        ValueError, TypeError: it is no key, an encrypted one, or of a kind that C2PA does not know.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 (the library above brings it)
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("the key file holds no private key in PEM that is understood") from error
    except TypeError as error:
        raise TypeError("the private key is encrypted, and must not be") from error
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256", plain
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519", plain
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name], plain
    raise ValueError("the private key is of a kind that C2PA does not know; use one of the curve P-256")
