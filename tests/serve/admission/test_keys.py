"""API keys: in the file, out of it, and what becomes of those that are not good any more."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from lens_core.errors import ConfigError
from lens_serve.admission.keys import ANONYMOUS, Key, KeyRefusedError, Keyring, add, read, revoke


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def test_a_key_opens_what_it_is_for(file):
    text, record = add(
        file, "Ada", scopes=["images", "metrics"], weight=2.5, max_concurrent=3, images_per_day=7, seconds_per_day=9.5
    )
    add(file, "somebody else")
    assert Keyring.load(file).find(text) == Key(
        id=record.id,
        name="Ada",
        scopes=frozenset({"images", "metrics"}),
        weight=2.5,
        max_concurrent=3,
        images_per_day=7,
        seconds_per_day=9.5,
    )


def test_a_file_may_be_at_home(file, monkeypatch):
    text, _ = add(file, "Ada")
    monkeypatch.setenv("HOME", str(file.parent))
    assert Keyring.load("~/keys.json").find(text).name == "Ada"


def test_the_file_holds_hashes_of_256_random_bits(file):
    texts = [add(file, "Ada")[0] for _ in range(3)]
    assert len(set(texts)) == 3
    for text in texts:
        assert re.fullmatch("lens-[a-z2-7]{52}", text)
        assert len(base64.b32decode(text.removeprefix("lens-").upper() + "====")) == 32
        assert text not in file.read_text()
        assert text.removeprefix("lens-") not in file.read_text()
    stored = json.loads(file.read_text())
    assert stored["format_version"] == 1
    assert [one["sha256"] for one in stored["keys"]] == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_scopes():
    assert ANONYMOUS.may("images")
    assert not ANONYMOUS.may("metrics")
    assert Key(id="a", name="a", scopes=frozenset({"admin"})).may("metrics")
    assert not Key(id="a", name="a", scopes=frozenset({"metrics"})).may("images")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lens-",
        "sk-abc",
        "lens-" + 52 * "a",
        "lens-" + 52 * "A",
        "lens-" + 51 * "a",
        "lens-" + 52 * "é",
        100 * "lens-",
    ],
)
def test_strange_keys_are_refused(file, text):
    add(file, "Ada")
    with pytest.raises(KeyRefusedError):
        Keyring.load(file).find(text)


def test_a_running_server_hears_of_new_and_revoked_keys(file):
    add(file, "first")
    keyring = Keyring.load(file)
    text, record = add(file, "second")
    assert keyring.find(text).name == "second"
    revoked = revoke(file, record.id)
    assert revoked.revoked is not None
    with pytest.raises(KeyRefusedError, match="revoked"):
        keyring.find(text)
    assert revoke(file, record.id) == revoked  # again changes nothing
    assert [one.name for one in read(file)] == ["first", "second"]


def test_expired_keys_are_refused(file):
    text, _ = add(file, "Ada", expires_days=1)
    keyring = Keyring.load(file)
    assert keyring.find(text).name == "Ada"
    stored = json.loads(file.read_text())
    stored["keys"][0]["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    file.write_text(json.dumps(stored))
    with pytest.raises(KeyRefusedError, match="expired"):
        keyring.find(text)


def test_a_key_that_is_stored_twice_is_good_only_if_both_are(file):
    text, record = add(file, "Ada")
    stored = json.loads(file.read_text())
    stored["keys"].append(stored["keys"][0] | {"id": "copy"})
    file.write_text(json.dumps(stored))
    assert Keyring.load(file).find(text).id == record.id
    revoke(file, "copy")
    with pytest.raises(KeyRefusedError, match="revoked"):
        Keyring.load(file).find(text)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"format_version": 2}', b'{"keys": [{"id": "a"}]}']
)
def test_a_damaged_file_is_one_line_that_names_it(file, damage):
    file.write_bytes(damage)
    for call in (Keyring.load, read, lambda path: add(path, "Ada"), lambda path: revoke(path, "a")):
        with pytest.raises(ConfigError) as caught:
            call(file)
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)
    assert file.read_bytes() == damage


def test_what_was_read_stays_in_force_when_the_file_breaks(file, caplog):
    text, _ = add(file, "Ada")
    keyring = Keyring.load(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert keyring.find(text).name == "Ada"
    assert keyring.find(text).name == "Ada"
    assert len([one for one in caplog.records if "stay in force" in one.message]) == 1
    file.unlink()
    assert keyring.find(text).name == "Ada"
    file.write_bytes(whole)
    revoke(file, read(file)[0].id)
    with pytest.raises(KeyRefusedError):
        keyring.find(text)


def test_mistakes_are_one_line(file):
    with pytest.raises(ConfigError, match=r"keys\.json: there is no such file of API keys; `lens serve keys add"):
        Keyring.load(file)
    for wrong in (
        {"scopes": ["everything"]},
        {"weight": 0},
        {"weight": 1e-320},  # times the seconds of a round, it is nothing
        {"weight": float("nan")},
        {"max_concurrent": 0},
        {"scopes": []},
    ):
        with pytest.raises(ConfigError) as caught:
            add(file, "Ada", **wrong)
        assert next(iter(wrong)) in str(caught.value)
    assert not file.exists()
    add(file, "Ada")
    with pytest.raises(ConfigError, match="no key 'nobody'"):
        revoke(file, "nobody")
    with pytest.raises(ConfigError, match="cannot be written"):
        add(file / "below", "Ada")


def test_commands_at_the_same_time_forget_nothing(file):
    """Three processes add keys; all of them are there afterwards."""
    code = "import sys; from lens_serve.admission.keys import add; [add(sys.argv[1], sys.argv[2]) for _ in range(4)]"
    running = [subprocess.Popen([sys.executable, "-c", code, str(file), f"process {index}"]) for index in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert sorted(one.name for one in read(file)) == sorted(4 * [f"process {index}" for index in range(3)])


def test_the_time_of_a_look_up_does_not_tell_which_key_it_was(file, monkeypatch):
    """Whether it is the first, the last or none: all are compared, by what takes equally long for all texts."""
    texts = [add(file, f"number {index}")[0] for index in range(5)]
    keyring = Keyring.load(file)
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(1) or compare(one, other))
    for text in (texts[0], texts[4]):
        keyring.find(text)
    with pytest.raises(KeyRefusedError):
        keyring.find("lens-" + 52 * "a")
    assert len(compared) == 15
