"""Signatures: the C2PA library itself finds them intact; certificates that cannot sign are told at the start."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from lens_core.errors import ConfigError, MissingExtraError
from lens_core.images import decode
from lens_core.storage.lineage import read_receipt as read_png
from lens_serve.config import OutputSettings
from lens_serve.images.encoders import MIME_TYPES, Encoders, encode_image
from lens_serve.images.metadata import read_receipt
from lens_serve.images.sign import Signer, SignError
from serve.images.certificates import KEYS, signing_files

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
RECEIPT = {"prompt": "ein roter Kreis 🟥", "seed": 3}
INTACT = {"claimSignature.validated", "assertion.dataHash.match", "assertion.hashedURI.match"}


def examined(data, mime_type="image/png", **trust):
    """What the library says of a file: its state, what held, what failed, and the one action of its manifest."""
    context = c2pa.Context.from_dict({"trust": trust})
    with context, c2pa.Reader(mime_type, io.BytesIO(data), context=context) as reader:
        said, state = json.loads(reader.json()), reader.get_validation_state()
    results = said["validation_results"]["activeManifest"]
    codes = [{status["code"] for status in results[kind]} for kind in ("success", "failure")]
    manifest = said["manifests"][said["active_manifest"]]
    (assertion,) = manifest["assertions"]
    assert assertion["label"] == "c2pa.actions.v2"
    (action,) = assertion["data"]["actions"]
    return state, *codes, action


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    chain, key = signing_files(tmp_path_factory.mktemp("certificates"))
    return OutputSettings(c2pa_certificate=str(chain), c2pa_key=str(key))


def test_certificate_and_key_may_be_at_home(settings, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(settings.c2pa_key).parent))
    paths = {name: f"~/{Path(getattr(settings, name)).name}" for name in ("c2pa_certificate", "c2pa_key")}
    assert Signer.of(OutputSettings(**paths)) is not None


@pytest.mark.parametrize("format", MIME_TYPES)
def test_signed_files_are_intact_and_keep_receipt_and_pixels(settings, format):
    encoders = Encoders(settings)
    try:
        data = asyncio.run(encoders.encode(IMAGE, format=format, compression=90, receipt=RECEIPT, from_picture=False))
    finally:
        encoders.close()
    state, held, failed, action = examined(data, MIME_TYPES[format])
    assert state == "Valid"
    assert held >= INTACT
    assert failed == {"signingCredential.untrusted"}  # nobody knows our authority
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert read_receipt(data).items() >= RECEIPT.items()
    plain = encode_image(IMAGE, format=format, quality=90, receipt=RECEIPT)
    np.testing.assert_array_equal(decode(data), decode(plain))
    assert len(data) - len(plain) < 5000
    if format == "png":
        assert read_png(data) == RECEIPT  # as `lens trace` does


def test_a_reader_that_trusts_the_authority_trusts_the_picture(settings):
    _, root = re.findall(r"-----BEGIN.*?END CERTIFICATE-----\n", Path(settings.c2pa_certificate).read_text(), re.DOTALL)
    trust = {"trust": {"trust_anchors": root}, "verify": {"verify_trust": True}}
    data = Signer.of(settings).sign(encode_image(IMAGE, format="png"), "image/png")
    with (
        c2pa.Context.from_dict(trust) as context,
        c2pa.Reader("image/png", io.BytesIO(data), context=context) as reader,
    ):
        assert reader.get_validation_state() == "Trusted"


def test_what_was_drawn_on_a_picture_is_called_composite(settings):
    encoders = Encoders(settings)
    try:
        preview = {"preview": 0}  # what it is drawn on does not depend on what its receipt has room for
        data = asyncio.run(encoders.encode(IMAGE, format="png", compression=None, receipt=preview, from_picture=True))
    finally:
        encoders.close()
    assert examined(data)[3]["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")


@pytest.mark.parametrize("what", [b'"seed": 3', b"IDAT"])
def test_a_changed_receipt_or_pixel_breaks_the_signature(settings, what):
    data = bytearray(Signer.of(settings).sign(encode_image(IMAGE, format="png", receipt=RECEIPT), "image/png"))
    data[data.index(what) + len(what) - 1 + (40 if what == b"IDAT" else 0)] ^= 1
    state, _, failed, _ = examined(bytes(data))
    assert state == "Invalid"
    assert "assertion.dataHash.mismatch" in failed


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_that_c2pa_knows_signs(tmp_path, kind):
    signer = Signer(*signing_files(tmp_path, kind=kind))
    assert examined(signer.sign(encode_image(IMAGE, format="png"), "image/png"))[0] == "Valid"


@pytest.mark.parametrize("usage", ["1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"], ids=["documents", "C2PA"])
def test_certificates_for_documents_and_of_c2pa_itself_sign(tmp_path, usage):
    signer = Signer(*signing_files(tmp_path, usage=ObjectIdentifier(usage)))
    assert examined(signer.sign(encode_image(IMAGE, format="png"), "image/png"), trust_config=usage)[0] == "Valid"


def test_keys_in_the_older_format_of_openssl_sign(tmp_path):
    chain, key = signing_files(tmp_path)
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    assert b"EC PRIVATE KEY" in key.read_bytes()
    assert examined(Signer(chain, key).sign(encode_image(IMAGE, format="png"), "image/png"))[0] == "Valid"


def test_many_threads_may_sign_at_once(settings):
    signer = Signer.of(settings)
    plain = encode_image(IMAGE, format="png", receipt=RECEIPT)
    with ThreadPoolExecutor(8) as threads:
        signed = list(threads.map(lambda _: signer.sign(plain, "image/png"), range(64)))
    assert {examined(data)[0] for data in signed} == {"Valid"}
    assert len(set(signed)) == 64  # each manifest has a name of its own


def test_nothing_is_signed_unless_it_is_asked_for():
    assert Signer.of(OutputSettings()) is None


@pytest.mark.parametrize("given", [{"c2pa_certificate": "chain.pem"}, {"c2pa_key": "key.pem"}])
def test_half_a_configuration_is_told(given):
    with pytest.raises(ConfigError, match=r"^to sign images, give both c2pa_certificate and c2pa_key$"):
        Signer.of(OutputSettings(**given))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_library_is_told_with_the_line_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(MissingExtraError, match=r"packages/lens-serve\[c2pa\]"):
        Signer(*signing_files(tmp_path))


def test_files_that_are_not_there_are_told(tmp_path):
    chain, key = signing_files(tmp_path)
    with pytest.raises(ConfigError, match=r"^c2pa_certificate: .*none\.pem cannot be read: No such file") as error:
        Signer(tmp_path / "none.pem", key)
    with pytest.raises(ConfigError, match=r"^c2pa_key: .* cannot be read: Is a directory$"):
        Signer(chain, tmp_path)
    one_line(error)


@pytest.mark.parametrize("which", ["chain", "key"])
@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_files_that_hold_something_else_are_told(tmp_path, which, content):
    chain, key = signing_files(tmp_path)
    (chain if which == "chain" else key).write_bytes(content)
    with pytest.raises(ConfigError, match="images cannot be signed with these") as error:
        Signer(chain, key)
    assert str(chain) in one_line(error)


def test_an_encrypted_key_is_told(tmp_path):
    chain, key = signing_files(tmp_path)
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ConfigError, match="the private key is encrypted"):
        Signer(chain, key)


def test_the_key_of_another_certificate_is_told(tmp_path):
    (tmp_path / "other").mkdir()
    chain, _ = signing_files(tmp_path)
    _, key = signing_files(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"claimSignature\.mismatch"):
        Signer(chain, key)


@pytest.mark.parametrize(
    "changes",
    [{"ends_in": -timedelta(days=1)}, {"usage": ExtendedKeyUsageOID.SERVER_AUTH}],
    ids=["expired", "of a web server"],
)
def test_certificates_that_readers_would_refuse_are_told(tmp_path, changes):
    with pytest.raises(ConfigError, match="images cannot be signed with these") as error:
        Signer(*signing_files(tmp_path, **changes))
    one_line(error)


def test_no_secret_is_ever_in_a_message(tmp_path):
    chain, key = signing_files(tmp_path, ends_in=-timedelta(days=1))
    with pytest.raises(ConfigError) as error:
        Signer(chain, key)
    secret = key.read_text().splitlines()[1]
    assert secret not in repr(error.value)


def test_what_is_no_image_is_not_signed(settings):
    with pytest.raises(SignError, match="cannot be signed"):
        Signer.of(settings).sign(b"hello", "image/png")
