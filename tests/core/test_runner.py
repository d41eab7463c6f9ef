"""The runner: order, skipping, reasons, locks, signals, and SIGKILL at random moments."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lens_core.errors import LensError, RunFolderError, StorageError
from states import state_of

FAKES = Path(__file__).resolve().parents[1] / "fakes"
PIPELINE = """\
run: {run}
stages:
  - {{name: a, type: numbers, count: {count}, pause_s: {pause}}}
  - {{name: b, type: numbers, count: 4}}
  - {{name: sum, type: total, source: [a, b]}}
"""


@pytest.fixture
def pipeline(tmp_path):
    def write(*, run="run", count=3, pause=0, extra=""):
        file = tmp_path / "pipeline.yaml"
        file.write_text(PIPELINE.format(run=run, count=count, pause=pause) + extra)
        return str(file)

    return write


def manifest(tmp_path, stage, run="run"):
    return json.loads((tmp_path / run / stage / "manifest.json").read_text())


def start(tmp_path, file, *options):
    env = {**os.environ, "PYTHONPATH": str(FAKES / "good")}
    command = [Path(sys.executable).with_name("lens"), "run", file, *options]
    return subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)


def stop_midway(tmp_path, process, number=signal.SIGINT, *, size=9, again=None):
    """Ask it to stop once it has some numbers; what it said, and the journal that it leaves.

    Args:
        size: of the journal by then, at least.
        again: seconds to wait before another signal, and which.
    """
    began, deadline = time.time_ns(), time.monotonic() + 60

    def has_some(journal):
        return journal.exists() and journal.stat().st_mtime_ns > began and journal.stat().st_size >= size

    while not has_some(journal := state_of(tmp_path / "run", "a") / "journal"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    if again:
        time.sleep(again[0])
        process.send_signal(again[1])
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    return said, journal


def test_runs_in_order_then_skips_everything(lens, pipeline, tmp_path):
    done = lens("run", pipeline(), fakes=("good",))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "total 9\n"
    again = lens("run", pipeline(), fakes=("good",))
    assert again.stderr.count("done already") == 3
    assert again.stdout == "total 9\n"
    assert json.loads((tmp_path / "run" / "sum" / "total.json").read_text()) == 9
    assert "count: 3" in (tmp_path / "run" / "resolved.yaml").read_text()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in events if event["event"] == "stage-done"] == ["a", "b", "sum"]


def test_says_why_a_stage_runs_again_and_spares_the_rest(lens, pipeline):
    lens("run", pipeline(), fakes=("good",))
    again = lens("run", pipeline(count=5), fakes=("good",))
    assert "a: Writes numbers" in again.stderr
    assert "(again: count changed)" in again.stderr
    assert "b: done already" in again.stderr
    assert "(again: its input 'a' changed)" in again.stderr
    assert "(again: the seed changed)" in lens("run", pipeline(count=5), "--set", "seed=5", fakes=("good",)).stderr


def test_lineage_is_complete_and_hashes_match(lens, pipeline, tmp_path):
    import hashlib

    lens("run", pipeline(), fakes=("good",))
    made = manifest(tmp_path, "sum")
    assert [parent["hash"] for parent in made["parents"]] == [manifest(tmp_path, name)["hash"] for name in "ab"]
    (entry,) = made["files"]
    assert entry["sha256"] == hashlib.sha256((tmp_path / "run" / "sum" / "total.json").read_bytes()).hexdigest()
    traced = lens("trace", "run/sum/total.json")
    assert traced.returncode == 0
    assert [line.split()[0] for line in traced.stdout.splitlines() if "total" in line or "numbers by" in line] == [
        "sum",
        "a",
        "b",
    ]
    assert lens("trace", "pipeline.yaml").returncode == 2
    assert lens("trace", "nowhere.png").returncode == 2


def test_a_lost_file_is_made_again(lens, pipeline, tmp_path):
    lens("run", pipeline(), fakes=("good",))
    (tmp_path / "run" / "a" / "numbers.txt").unlink()
    again = lens("run", pipeline(), fakes=("good",))
    assert "(again: numbers.txt is gone)" in again.stderr
    assert (tmp_path / "run" / "a" / "numbers.txt").exists()


def test_user_errors_are_one_line_and_leave_no_manifest(lens, pipeline, tmp_path):
    done = lens("run", pipeline(), "--set", "b.fail_at=2", fakes=("good",))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "lens: told to fail"
    assert not (tmp_path / "run" / "b" / "manifest.json").exists()
    assert "Traceback" not in done.stderr


def test_killed_at_random_moments_it_goes_on(pipeline, tmp_path):
    file = pipeline(count=40, pause=0.02)
    random.seed(5)
    kills = 0
    for number in range(40):
        process = start(tmp_path, file)
        try:
            # Later ones live longer: a busy machine needs more than this to get anywhere.
            process.wait(random.uniform(0.3, 0.9) * (1 + number / 4))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        finally:
            process.stderr.close()
    assert kills >= 1
    assert process.returncode == 0
    numbers = (tmp_path / "run" / "a" / "numbers.txt").read_text().split()
    assert numbers == [str(number) for number in range(40)]
    assert json.loads((tmp_path / "run" / "sum" / "total.json").read_text()) == sum(range(40)) + 6
    assert list((tmp_path / "run" / ".state").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_with_code_3(lens, pipeline, tmp_path, number):
    said, journal = stop_midway(tmp_path, start(tmp_path, pipeline(count=500, pause=0.02)), number)
    assert said.splitlines()[-1].startswith("lens: stopped at number")
    saved = len(journal.read_text().split())
    done = lens("run", pipeline(count=saved, pause=0), fakes=("good",))
    assert done.returncode == 0


def test_a_signal_that_comes_twice_is_one_request(pipeline, tmp_path):
    """As torchrun passes on what a scheduler sends to every process as well."""
    process = start(tmp_path, pipeline(count=500, pause=3))
    said, _ = stop_midway(tmp_path, process, signal.SIGTERM, size=1, again=(1.5, signal.SIGTERM))
    assert said.splitlines()[-1].startswith("lens: stopped at number")


def test_ctrl_c_twice_does_not_wait(pipeline, tmp_path):
    process = start(tmp_path, pipeline(count=500, pause=100))
    said, _ = stop_midway(tmp_path, process, size=1, again=(1.5, signal.SIGINT))
    assert said.splitlines()[-1].startswith("lens: interrupted")


ANEW = "(begun anew: its settings or sources changed; what was begun before is kept until it is done)"


def test_other_settings_begin_anew_and_those_that_come_back_go_on(lens, pipeline, tmp_path):
    file = pipeline(count=80, pause=0.05)
    said, journal = stop_midway(tmp_path, start(tmp_path, file))
    assert ANEW not in said
    with journal.open("a") as more:
        more.write("1000\n")  # by which it is known again
    said, other = stop_midway(tmp_path, start(tmp_path, file, "--set", "seed=1"))
    assert f"a: Writes numbers, slowly, and goes on where it was cut off. {ANEW}" in said
    assert other != journal
    done = lens("run", file, fakes=("good",))
    assert done.returncode == 0
    assert "a: Writes numbers, slowly, and goes on where it was cut off. (again: it was cut off)" in done.stderr
    assert "1000" in (tmp_path / "run" / "a" / "numbers.txt").read_text().split()
    assert list((tmp_path / "run" / ".state").iterdir()) == []


def test_one_writer(lens, pipeline, tmp_path):
    process = start(tmp_path, pipeline(count=500, pause=0.05))
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        second = lens("run", pipeline(count=500, pause=0.05), fakes=("good",))
        assert second.returncode == 2
        (line,) = second.stderr.splitlines()
        assert f"the run folder run is in use by process {process.pid}" in line
    finally:
        process.kill()
        process.communicate()
    assert lens("run", pipeline(), fakes=("good",)).returncode == 0


def test_a_foreign_folder_is_refused(lens, pipeline, tmp_path):
    lens("run", pipeline(), fakes=("good",))
    other = tmp_path / "other.yaml"
    other.write_text("run: run\nstages:\n  - {name: other, type: numbers}\n")
    done = lens("run", str(other), fakes=("good",))
    assert done.returncode == 2
    assert "was made by another pipeline, pipeline.yaml" in done.stderr
    other.write_text("run: run\nstages:\n  - {name: b, type: numbers}\n  - {name: a, type: total, source: b}\n")
    assert "there 'a' is of type numbers" in lens("run", str(other), fakes=("good",)).stderr
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    done = lens("run", pipeline(run="photos"), fakes=("good",))
    assert done.returncode == 2
    assert "photos is not empty and no run folder of Lens" in done.stderr
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_a_folder_in_which_a_peer_begins_just_now_is_not_foreign(pipeline, tmp_path, with_fakes):
    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.run_folder import describe_run, refuse_foreign

    loaded = load_pipeline(pipeline(), with_fakes("good"))
    runs = [str(tmp_path / f"run-{number}") for number in range(400)]
    for run in runs:
        Path(run).mkdir()
    together = threading.Barrier(2)

    def peer():
        for run in runs:
            together.wait()
            describe_run(loaded, run, None)

    beginning = threading.Thread(target=peer)
    beginning.start()
    refused = []
    for run in runs:
        together.wait()
        try:
            while not Path(run, "resolved.yaml").exists():
                refuse_foreign(loaded, run)
        except RunFolderError as error:
            refused.append(str(error))
    beginning.join()
    assert refused == []


def test_what_tells_a_run_folder_is_written_before_all_else(pipeline, tmp_path, with_fakes, monkeypatch):
    """Else a peer that looks in between takes the folder for a foreign one."""
    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline import runner

    registry, written = with_fakes("good"), []
    write = runner.urls.write_bytes
    monkeypatch.setattr(
        runner.urls, "write_bytes", lambda url, data: (written.append(Path(url).name), write(url, data))
    )

    class Events(runner.EventLog):
        def __init__(self, file):
            written.append(Path(file).name)
            super().__init__(file)

    monkeypatch.setattr(runner, "EventLog", Events)
    runner.run_pipeline(load_pipeline(pipeline(run=str(tmp_path / "run")), registry), registry)
    assert written.index("run.json") == 0
    assert "events.jsonl" in written


def test_unwritable_run_folder(lens, pipeline, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = lens("run", pipeline(run="file/run"), fakes=("good",))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the run folder file/run cannot be made" in line


def test_a_run_folder_that_cannot_be_locked_or_described_is_one_line(pipeline, tmp_path, with_fakes, monkeypatch):
    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.lock import locked, shared
    from lens_core.pipeline.runner import run_pipeline
    from lens_core.storage.leases import own_folder

    registry = with_fakes("good")
    loaded = load_pipeline(pipeline(run=tmp_path / "run"), registry)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="run cannot be written: invalid argument"):
        run_pipeline(loaded, registry)
    with (
        pytest.raises(RunFolderError, match="run cannot be written: invalid argument"),
        shared(str(tmp_path / "run"), worker="one", lease_s=3),
    ):
        pass

    def flock(*_):  # as a mount without locks has it
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunFolderError, match="run cannot be locked: no locks available"), locked(str(tmp_path / "run")):
        pass
    with pytest.raises(StorageError, match=r"cannot lock .*: no locks available"), own_folder(tmp_path / "cache"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*: not a directory"), own_folder(tmp_path / "file" / "x"):
        pass


def test_private_state_that_cannot_be_kept_is_one_line(lens, pipeline, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".state").touch()
    done = lens("run", pipeline(), fakes=("good",))
    assert done.returncode == 2
    assert done.stderr == "lens: cannot write run/.state: file exists\n"


def test_a_store_that_fails_at_the_end_hides_nothing(pipeline, tmp_path, with_fakes, bucket, monkeypatch):
    """The stage's own error is told, and where the events are."""
    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.progress import Progress
    from lens_core.pipeline.runner import run_pipeline
    from lens_core.storage import urls

    registry = with_fakes("good")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = load_pipeline(pipeline(run=f"{bucket}/run"), registry, ["b.fail_at=2"])
    said = io.StringIO()
    really = urls.write_bytes

    def write_bytes(url, data):
        if url.endswith("/events.jsonl"):
            raise StorageError(f"cannot write {url}: connection refused")
        really(url, data)

    monkeypatch.setattr(urls, "write_bytes", write_bytes)
    with pytest.raises(LensError, match="told to fail"):
        run_pipeline(loaded, registry, progress=Progress(stream=said))
    (events,) = (tmp_path / "cache").rglob("events.jsonl")
    assert f"warning: the run's events stay in {events}: cannot write" in said.getvalue()


def test_what_a_killed_trial_of_the_store_left_is_not_foreign(pipeline, tmp_path, with_fakes, bucket):
    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.run_folder import refuse_foreign
    from lens_core.storage import urls

    loaded = load_pipeline(pipeline(run=f"{bucket}/run"), with_fakes("good"))
    urls.write_bytes(f"{bucket}/run/.exclusive-0a1b2c3d", b"one")
    refuse_foreign(loaded, f"{bucket}/run")
    urls.write_bytes(f"{bucket}/run/cat.jpg", b"miaow")
    with pytest.raises(RunFolderError, match=r"cat\.jpg"):
        refuse_foreign(loaded, f"{bucket}/run")


def test_unreadable_pipeline(lens):
    done = lens("run", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr.strip() == "lens: cannot read nowhere.yaml: it does not exist"


def test_our_own_bug_shows_its_traceback(lens, pipeline):
    done = lens("run", pipeline(), "--set", "b.fail_at=-2", fakes=("good",))
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr
    assert "Traceback" in done.stderr


def test_a_run_within_a_run(pipeline, tmp_path, with_fakes):
    """Stages that another stage runs in a folder of its own: keys and states as ever, parents from outside."""
    import io

    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.progress import Progress
    from lens_core.pipeline.runner import run_pipeline, run_stages
    from lens_core.storage.artifacts import load_artifact

    registry = with_fakes("good")
    outer = run_pipeline(load_pipeline(pipeline(run=str(tmp_path / "run")), registry), registry)
    said = io.StringIO()

    def nested(folder, **own):
        blocks = [{"name": "own", "type": "numbers", **own}, {"name": "all", "type": "total", "source": ["a", "own"]}]
        return run_stages(
            [registry.parse("stages", block) for block in blocks],
            run_url=str(folder),
            state_root=folder / ".state",
            base=str(tmp_path),
            seed=0,
            registry=registry,
            progress=Progress(stream=said, live=False),
            given={"a": outer["a"]},
        )

    made = nested(tmp_path / "inner")
    assert list(made) == ["own", "all"]
    assert made["all"].stats["total"] == 6
    assert {parent.url for parent in made["all"].parents} == {
        str(tmp_path / "run" / "a"),
        str(tmp_path / "inner" / "own"),
    }
    # The folder may move, as long as what it takes from outside stays.
    (tmp_path / "inner").rename(tmp_path / "moved")
    assert [parent.hash for parent in load_artifact(str(tmp_path / "moved" / "all")).parents] == [
        outer["a"].hash,
        made["own"].hash,
    ]
    nested(tmp_path / "moved")
    assert said.getvalue().count("done already") == 2
    nested(tmp_path / "moved", count=5)
    assert "own: Writes numbers, slowly, and goes on where it was cut off. (again: count changed)" in said.getvalue()
    assert list((tmp_path / "moved" / ".state").iterdir()) == []


def test_asked_to_stop_a_run_within_a_run_stops_between_stages(with_fakes, tmp_path):
    import io

    from lens_core.errors import Stopped
    from lens_core.pipeline.progress import Progress
    from lens_core.pipeline.runner import run_stages

    registry = with_fakes("good")
    whole = Progress(stream=io.StringIO(), live=False)
    whole.open("outer")

    class AsksAfterOne(Progress):
        def close(self, event, **fields):
            super().close(event, **fields)
            whole.stop_asked = True

    part = AsksAfterOne(stream=io.StringIO(), live=False, whole=whole, part_name="one")
    stages = [registry.parse("stages", {"name": name, "type": "numbers"}) for name in "ab"]
    with pytest.raises(Stopped, match="stopped after a; the same command goes on"):
        run_stages(
            stages,
            run_url=str(tmp_path / "inner"),
            state_root=tmp_path / "inner" / ".state",
            base=str(tmp_path),
            seed=0,
            registry=registry,
            progress=part,
        )
    whole.close("stage-failed")
    assert sorted(path.name for path in (tmp_path / "inner").iterdir()) == [".state", "a"]
