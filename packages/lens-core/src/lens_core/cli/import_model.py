"""What `lens import` does: complete a folder in the released layout with the `lens.json` that Lens loads it by.

Two strings of the released prompt template are in the released code only. They are found there by their sha256: the
code is parsed, never imported or run.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_core.diffusion.released import LICENCE, check_released, released_lens
from lens_core.diffusion.text_encoders.gpt_oss.template import RELEASED_DATE, RELEASED_HASHES, sha256
from lens_core.errors import ConfigError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PRESETS", "find_template", "import_model"]

PRESETS = {"lens": (20, 5.0), "turbo": (4, 1.0), "base": (50, 5.0)}
"""Steps and guidance that the release recommends for each of its checkpoints."""

_LARGEST_FILE = 4_000_000
_MOST_FILES = 20_000


def import_model(
    source: str,
    *,
    code: str,
    preset: str = "lens",
    steps: int | None = None,
    guidance: float | None = None,
    force: bool = False,
) -> Iterator[str]:
    """Write `lens.json` into a released folder and yield lines about it.

    Args:
        source: the folder; nothing else in it is touched.
        code: the released code: a folder of Python files, or one file.
        preset: which checkpoint it is, a name in `PRESETS`.
        steps: sampler steps; None takes the preset's.
        guidance: guidance scale; None takes the preset's.
        force: replace a `lens.json` that says something else.

    Raises:
        ArtifactError: it is no released folder, or one that Lens cannot express.
        ConfigError: the template is not in the code, an option is wrong, or another `lens.json` is there.
        StorageError: the folder cannot be written.
    """
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset!r} is not one of {', '.join(PRESETS)}")
    if guidance is not None and not math.isfinite(guidance):
        raise ConfigError(f"--guidance {guidance} is no number to guide by")
    folder = Path(source).expanduser()
    check_released(folder)
    usual_steps, usual_guidance = PRESETS[preset]
    steps = usual_steps if steps is None else steps
    guidance = usual_guidance if guidance is None else guidance
    template = {**find_template(Path(code).expanduser()), "date": RELEASED_DATE}
    lens = released_lens(folder, steps=steps, guidance=guidance, template=template)
    target = folder / "lens.json"
    if not target.exists():
        verb = "written"
    elif _same(target, lens):
        yield f"{target} is complete already"
        return
    elif force:
        verb = "replaced"
    else:
        raise ConfigError(f"{target} exists and says something else; --force replaces it")
    urls.write_bytes(str(target), (json.dumps(lens, indent=2, ensure_ascii=False) + "\n").encode())
    yield f"{target} {verb}: {steps} steps, guidance {guidance:g}"
    yield f"licence: {LICENCE}"


def find_template(code: Path) -> dict[str, str]:
    """The template's strings, found by their hashes among all string constants of some Python code.

    Args:
        code: a folder, searched with its subfolders, or a file.

    Raises:
        ConfigError: the code is not there, or does not hold them all.
    """
    names = {digest: name for name, digest in RELEASED_HASHES.items()}
    found: dict[str, str] = {}
    searched = unreadable = 0
    for file in _python_files(code):
        try:
            for text in _strings(file):
                if (name := names.get(sha256(text))) is not None:
                    found[name] = text
            searched += 1
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            unreadable += 1
        if found.keys() == RELEASED_HASHES.keys():
            return {name: found[name] for name in RELEASED_HASHES}
    missing = " and ".join(f"{name} ({RELEASED_HASHES[name][:12]}…)" for name in RELEASED_HASHES if name not in found)
    skipped = f"; {unreadable} more could not be read" if unreadable else ""
    raise ConfigError(
        f"--code {code} does not hold the template: {missing} not found by sha256 among the strings of "
        f"{searched} Python {'file' if searched == 1 else 'files'}{skipped}; "
        "it must be the release's own inference code, or a faithful copy"
    )


def _python_files(code: Path) -> list[Path]:
    if code.is_file():
        return [code]
    if not code.is_dir():
        raise ConfigError(f"--code {code} does not exist; give a folder of Python files or one file")
    files = sorted(code.rglob("*.py"))
    if len(files) > _MOST_FILES:
        raise ConfigError(f"--code {code} has {len(files)} Python files; point it at the model's own code")
    return [file for file in files if file.is_file()]


def _strings(file: Path) -> Iterator[str]:
    """All string constants of a file; strings that stand side by side are one.

    Raises:
        OSError, SyntaxError, ValueError, RecursionError, MemoryError: it is too large or cannot be parsed.
    """
    if file.stat().st_size > _LARGEST_FILE:
        raise ValueError("too large")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the style of somebody else's code
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _same(path: Path, lens: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == lens)
    except (OSError, ValueError):
        return False
