"""The law of imports, as a test: siblings never meet, doors are light, and nothing that is read can run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_hold():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


FORBIDDEN = {
    r"\b(import|from)\s+(pickle|cloudpickle|marshal)\b": [
        "import pickle",
        "from pickle import loads",
        "import marshal",
    ],
    r"\b(pickle|cloudpickle|marshal)\.(load|dump)s?\b": [
        "cloudpickle.loads(data)",
        "read = torch.serialization.pickle.load",
    ],
    r"\btorch\.load\(": ["torch.load(file)"],
    r"\byaml\.(unsafe_|full_)?load\(": ["yaml.load(text)", "yaml.unsafe_load(text)"],
    r"\ballow_pickle\W{1,4}True": ["np.load(file, allow_pickle=True)"],
    r"\btrust_remote_code\W{1,4}True": ["(folder, trust_remote_code=True)", '{"trust_remote_code": True}'],
    r"\bshell\W{1,4}True": ["run(line, shell=True)"],
    r"(?<![\w.])(eval|exec)\(": ["eval(text)", "  exec(code)"],
}
"""What would run the code of whoever wrote a file or a text, as lines that have to be found."""

HARMLESS = [
    "model.eval()",  # PyTorch's word for: not training
    "await asyncio.create_subprocess_exec(program)",  # no shell: arguments are a list
    'fs.load(file, trust_remote_code=False, allow_pickle=False)  # "pickle" in prose and in messages is no import',
    "yaml.safe_load(text)",
]
"""Lines that look like it and are in use. No module of ours needs an exception: where one does, say so here."""


def unsafe(text):
    return [line.strip() for line in text.splitlines() for pattern in FORBIDDEN if re.search(pattern, line)]


def test_no_pickle_no_unsafe_loading_and_no_shell():
    files = list((ROOT / "packages").glob("*/src/**/*.py"))
    assert len({file.relative_to(ROOT / "packages").parts[0] for file in files}) == 4
    found = {str(file.relative_to(ROOT)): unsafe(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_search_for_unsafe_code_finds_it():
    for pattern, lines in FORBIDDEN.items():
        assert all(re.search(pattern, line) for line in lines), pattern
    assert unsafe("\n".join(HARMLESS)) == []
