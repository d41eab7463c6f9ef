"""The light commands load no heavy library: checked on module names, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lens_core.testing.base import HEAVY

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart" / "pipeline.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins", "list"],
        ["plugins", "show", "model", "lens"],
        ["check", QUICKSTART],
        ["schema"],
    ],
    ids=lambda arguments: arguments[0] if isinstance(arguments, list) else "",
)
def test_light_commands_stay_light(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['lens', *{arguments!r}]\n"
        "from lens_core.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    assert not leave.code, leave.code\n"
        f"heavy = [name for name in {(*HEAVY, 'numpy', 'scipy', 'PIL', 'pyarrow')!r} if name in sys.modules]\n"
        "print('HEAVY', heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-500:] + done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["nonsense"], ["run", "--nonsense"], ["generate", "x"]])
def test_a_mistyped_command_is_told_without_a_traceback(lens, arguments):
    done = lens(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_command(lens):
    done = lens("--help")
    for command in ("run", "check", "schema", "generate", "trace", "plugins", "caption"):
        assert f"  {command} " in done.stdout
