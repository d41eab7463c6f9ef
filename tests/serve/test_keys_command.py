"""`lens serve keys` as it is typed: a key is shown once, and a line says who has which until when."""

from __future__ import annotations

import json
import re
import stat
from datetime import UTC, datetime, timedelta

import pytest

from lens_serve.admission.keys import KeyRefusedError, Keyring

KEY = re.compile(r"lens-[a-z2-7]{52}")


@pytest.fixture
def keys(lens):
    """`lens serve keys …`, in a folder of its own."""
    return lambda *arguments: lens("serve", "keys", *arguments)


def added(keys, *arguments):
    """The key that `add` printed, and the id that it told."""
    done = keys("add", *arguments)
    assert done.returncode == 0, done.stderr
    text = done.stdout.removesuffix("\n")
    assert KEY.fullmatch(text), done.stdout
    assert text not in done.stderr
    (id,) = re.findall(r"the key ([a-z0-9]+) of", done.stderr)
    return text, id


def listed(keys, *arguments):
    """The columns that `list` shows of each key."""
    done = keys("list", *arguments)
    assert done.returncode == 0, done.stderr
    return [line.split("  ") for line in done.stdout.splitlines()]


def one_line(done):
    """The error of a command that failed as it should."""
    assert done.returncode == 2, done.stderr
    assert not KEY.search(done.stdout)
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_key_is_printed_once_and_nowhere_kept(keys, tmp_path):
    text, id = added(keys, "ada")
    file = tmp_path / "lens-keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert text not in file.read_text()
    assert text.removeprefix("lens-") not in file.read_text()
    assert not KEY.search(keys("list").stdout)
    assert Keyring.load(file).find(text).id == id


def test_the_list_tells_who_what_for_and_until_when(keys, tmp_path):
    _, ada = added(keys, "ada", "--keys", "k.json")
    limits = ("--max-concurrent", "2", "--images-per-day", "7", "--seconds-per-day", "9.5")
    scopes = ("--scope", "metrics", "--scope", "images")
    text, night = added(
        keys, "night shift", "--keys", "k.json", "--weight", "0.25", "--expires-days", "90", *limits, *scopes
    )
    first, second = listed(keys, "--keys", "k.json")
    assert first == [ada, "ada", "images", "weight 1", "good"]
    assert second[:4] == [night, "night shift", "metrics,images", "weight 0.25"]
    until = datetime.strptime(second[4], "until %Y-%m-%d").replace(tzinfo=UTC)
    assert timedelta(days=88) < until - datetime.now(UTC) < timedelta(days=91)
    key = Keyring.load(tmp_path / "k.json").find(text)
    assert (key.max_concurrent, key.images_per_day, key.seconds_per_day) == (2, 7, 9.5)
    assert stat.S_IMODE((tmp_path / "k.json").stat().st_mode) == 0o600
    assert not (tmp_path / "lens-keys.json").exists()


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(keys, tmp_path):
    ada, ada_id = added(keys, "ada")
    bob, bob_id = added(keys, "bob")
    done = keys("revoke", ada_id)
    assert done.returncode == 0, done.stderr
    assert f"the key {ada_id} of 'ada' is revoked" in done.stdout
    states = {id: state for id, *_, state in listed(keys)}
    assert re.fullmatch(r"revoked \d{4}-\d\d-\d\d", states[ada_id])
    assert states[bob_id] == "good"
    assert stat.S_IMODE((tmp_path / "lens-keys.json").stat().st_mode) == 0o600
    ring = Keyring.load(tmp_path / "lens-keys.json")
    assert ring.find(bob).id == bob_id
    with pytest.raises(KeyRefusedError, match="revoked"):
        ring.find(ada)
    assert "there is no key 'nobody'" in one_line(keys("revoke", "nobody"))


def test_a_key_ends_by_itself(keys, tmp_path):
    text, _ = added(keys, "guest", "--expires-days", "0")
    ((*_, state),) = listed(keys)
    assert re.fullmatch(r"expired \d{4}-\d\d-\d\d", state)
    with pytest.raises(KeyRefusedError, match="expired"):
        Keyring.load(tmp_path / "lens-keys.json").find(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scope", "everything"), "scopes: "),
        (("--weight", "0"), "--weight"),
        (("--weight", "1e-320"), "--weight"),
        (("--weight", "nan"), "--weight"),
        (("--images-per-day", "0"), "--images-per-day"),
        (("--max-concurrent", "many"), "--max-concurrent"),
        (("--expires-days", "-1"), "--expires-days"),
        (("--forever",), "--forever"),
    ],
    ids=" ".join,
)
def test_wrong_options_make_no_key(keys, tmp_path, options, message):
    done = keys("add", "ada", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not (tmp_path / "lens-keys.json").exists()


@pytest.mark.parametrize("arguments", [("add", "ada"), ("list",), ("revoke", "abc")], ids=" ".join)
def test_a_damaged_file_is_left_as_it_is(keys, tmp_path, arguments):
    file = tmp_path / "lens-keys.json"
    added(keys, "ada")
    file.write_text(damaged := file.read_text()[:-40])
    line = one_line(keys(*arguments))
    assert "lens-keys.json" in line
    assert "restore it from a copy" in line
    assert file.read_text() == damaged


def test_without_a_file_the_list_says_how_to_make_one(keys, tmp_path):
    assert "`lens serve keys add NAME` makes one" in one_line(keys("list"))
    assert "`lens serve keys add NAME` makes one" in one_line(keys("revoke", "abc"))
    assert not list(tmp_path.iterdir())


def test_the_file_is_plain_json_that_says_its_version(keys, tmp_path):
    added(keys, "Ada Łovelace")
    stored = json.loads((tmp_path / "lens-keys.json").read_text(encoding="utf-8"))
    assert stored["format_version"] == 1
    assert [one["name"] for one in stored["keys"]] == ["Ada Łovelace"]
