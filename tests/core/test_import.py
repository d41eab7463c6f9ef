"""`lens import`: the template found in code that is never run, and the lens.json that completes a released folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lens_core.cli.import_model import PRESETS, find_template, import_model
from lens_core.diffusion.text_encoders.gpt_oss import template as template_module
from lens_core.diffusion.text_encoders.gpt_oss.template import RELEASED_HASHES, sha256
from lens_core.errors import ArtifactError, ConfigError

LENS_TINY = Path(__file__).parents[1] / "goldens" / "lens-tiny"
SYSTEM, THINKING = "Say what is to be seen, ünd how.", "One picture, then."
HASHES = {"system": sha256(SYSTEM), "thinking": sha256(THINKING)}
CODE = '''
import this_module_is_nowhere
raise SystemExit("a file that was run")

_SYSTEM = (
    "Say what is to be "
    # a remark between the halves
    "seen, ünd how."
)

class Pipeline:
    def encode(self, prompt, thinking="""One picture, then.""", bad="\\d"):
        return f"{prompt} {_SYSTEM}"
'''
TRANSFORMER = {
    "_class_name": "LensTransformer2DModel",
    "_diffusers_version": "0.37.1",
    "patch_size": 2,
    "in_channels": 128,
    "out_channels": 32,
    "num_layers": 48,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "inner_dim": 1536,
    "enc_hidden_dim": 2880,
    "axes_dims_rope": [8, 28, 28],
    "gate_mlp": True,
    "rms_norm": True,
    "multi_layer_encoder_feature": True,
    "selected_layer_index": [5, 11, 17, 23],
}


@pytest.fixture(autouse=True)
def _known_strings(monkeypatch):
    """As if the strings of these tests were the released ones, which are not in this repository."""
    for name in RELEASED_HASHES:
        monkeypatch.setitem(template_module.RELEASED_HASHES, name, HASHES[name])


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code"
    (folder / "pipelines").mkdir(parents=True)
    (folder / "pipelines" / "lens.py").write_text(CODE)
    (folder / "setup.py").write_text("print('hello')")
    (folder / "notes.md").write_text(THINKING)
    return folder


@pytest.fixture
def released(tmp_path):
    """A folder in the released layout, without its weights: nothing here looks at them."""
    folder = tmp_path / "Lens"
    configs = {
        "model_index.json": {"_class_name": "LensPipeline"},
        "transformer/config.json": TRANSFORMER,
        "text_encoder/config.json": {"model_type": "gpt_oss", "hidden_size": 2880},
        "tokenizer/tokenizer_config.json": {},
        "vae/config.json": {"_class_name": "AutoencoderKLFlux2"},
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    }
    for name, config in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    return folder


def run(folder, code, **options):
    return list(import_model(str(folder), code=str(code), **options))


def written(folder):
    return json.loads((folder / "lens.json").read_text())


def change(path, **fields):
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def refused(error, call):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


# --- the template ---


def test_template_is_found_in_a_folder_or_a_file(code):
    expected = {"system": SYSTEM, "thinking": THINKING}
    assert find_template(code) == expected
    assert find_template(code / "pipelines" / "lens.py") == expected


def test_the_two_strings_may_lie_apart(code):
    (code / "pipelines" / "lens.py").unlink()
    (code / "a.py").write_text(f"x = {{'key': [1, {SYSTEM!r}]}}")
    (code / "b.py").write_text(f"def f():\n  {THINKING!r}")
    assert find_template(code) == {"system": SYSTEM, "thinking": THINKING}


@pytest.mark.parametrize(
    ("name", "edit"), [("thinking", lambda text: text.replace("then.", "then")), ("system", lambda text: "")]
)
def test_string_that_is_not_there(code, name, edit):
    """One full stop less is another string; what a comment or a note says is none."""
    file = code / "pipelines" / "lens.py"
    file.write_text(edit(file.read_text()) + f"\n# {SYSTEM} {THINKING}\n")
    message = refused(ConfigError, lambda: find_template(code))
    assert f"{name} ({HASHES[name][:12]}…)" in message
    assert "of 2 Python files" in message
    assert ("system" in message) == (name == "system")


def test_nothing_there(tmp_path):
    (tmp_path / "a.py").write_text("")
    message = refused(ConfigError, lambda: find_template(tmp_path))
    assert "system (" in message
    assert " and thinking (" in message
    assert "of 1 Python file;" in message
    assert "does not exist" in refused(ConfigError, lambda: find_template(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "bad",
    [
        b"def (",
        b"\x00\x01",
        b"\xff\xfe\xff",
        b"x = " + b"(" * 5000,
        b"x = " + b"-" * 100_000 + b"1",
        b"#" * 5_000_000,
        b"# coding: nonesuch\n",
    ],
    ids=["syntax", "null", "bytes", "nested", "deep", "large", "coding"],
)
def test_files_that_are_no_python_are_passed_over(code, bad):
    (code / "a.py").write_bytes(bad)
    assert find_template(code)["system"] == SYSTEM
    (code / "pipelines" / "lens.py").unlink()
    assert "of 1 Python file; 1 more could not be read" in refused(ConfigError, lambda: find_template(code))


def test_unreadable_entries_are_passed_over(code):
    (code / "a.py").mkdir()
    (code / "b.py").symlink_to(code / "nowhere.py")
    (code / "loop").symlink_to(code)
    assert find_template(code)["system"] == SYSTEM


def test_code_is_never_run(code, capsys):
    mark = code / "harm"
    (code / "a.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).mkdir()")
    find_template(code)
    assert not mark.exists()
    assert "this_module_is_nowhere" not in sys.modules
    assert capsys.readouterr() == ("", "")


# --- lens.json ---


def test_lens_json_of_a_release(released, code):
    (line, licence) = run(released, code)
    assert line == f"{released}/lens.json written: 20 steps, guidance 5"
    assert "research use only" in licence
    lens = written(released)
    assert lens.pop("licence") in licence
    assert lens == {
        "format_version": 1,
        "model": {
            "type": "lens",
            "preset": "3.8b",
            "num_layers": 48,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "axes_dims_rope": [8, 28, 28],
            "selected_layer_index": [5, 11, 17, 23],
        },
        "autoencoder": {"type": "flux2"},
        "text_encoder": {"type": "gpt-oss", "layers": [5, 11, 17, 23]},
        "sampler": {"type": "flow-euler", "steps": 20, "shift": "released"},
        "prediction": {"type": "velocity"},
        "image_size": [1024, 1024],
        "guidance": {"scale": 5.0, "rescale": True},
        "template": {"system": SYSTEM, "thinking": THINKING, "date": "2026-05-23"},
        "parents": [],
    }
    assert sorted(file.name for file in released.iterdir() if file.is_file()) == ["lens.json", "model_index.json"]


def test_lens_json_is_what_the_components_take(released, code, lens_registry):
    run(released, code)
    lens = written(released)
    model = lens_registry.parse("models", lens["model"])
    fields = json.loads(json.dumps(model.architecture()))
    assert fields == {key: TRANSFORMER[key] for key in fields}
    assert lens_registry.parse("text_encoders", lens["text_encoder"]).layers == (5, 11, 17, 23)
    assert lens_registry.parse("samplers", lens["sampler"]).steps == 20


def test_reference_model_fits_what_was_written(released, code, lens_registry):
    """The config of the reference tensors is in the released form: the model it gives takes their weights strictly."""
    from safetensors.torch import load_file

    for part, name in (("transformer", "transformer_config.json"), ("text_encoder", "text_encoder/config.json")):
        (released / part / "config.json").write_bytes((LENS_TINY / name).read_bytes())
    change(released / "transformer" / "config.json", _class_name="LensTransformer2DModel")
    run(released, code)
    lens = written(released)
    config = lens_registry.parse("models", lens["model"])
    layers = lens_registry.parse("text_encoders", lens["text_encoder"]).layers
    model = lens_registry.build("models", config, in_channels=16, enc_hidden_dim=24, num_text_layers=len(layers))
    model.load_state_dict(load_file(LENS_TINY / "transformer.safetensors"), strict=True)


@pytest.mark.parametrize(("preset", "steps", "guidance"), [("lens", 20, 5.0), ("turbo", 4, 1.0), ("base", 50, 5.0)])
def test_presets(released, code, preset, steps, guidance):
    assert PRESETS[preset] == (steps, guidance)
    run(released, code, preset=preset)
    lens = written(released)
    assert (lens["sampler"]["steps"], lens["guidance"]["scale"]) == (steps, guidance)


def test_steps_and_guidance_override_the_preset(released, code):
    run(released, code, preset="turbo", steps=7, guidance=0.0)
    lens = written(released)
    assert (lens["sampler"]["steps"], lens["guidance"]["scale"]) == (7, 0.0)


@pytest.mark.parametrize("options", [{"preset": "tiny"}, {"guidance": float("nan")}, {"guidance": float("inf")}])
def test_wrong_options(released, code, options):
    assert refused(ConfigError, lambda: run(released, code, **options)).startswith(f"--{next(iter(options))} ")
    assert not (released / "lens.json").exists()


def test_other_autoencoder(released, code):
    change(released / "vae" / "config.json", _class_name="AutoencoderKL")
    run(released, code)
    assert written(released)["autoencoder"] == {"type": "autoencoder-kl"}


def test_again_changes_nothing(released, code):
    run(released, code)
    before = (released / "lens.json").stat().st_mtime_ns
    assert run(released, code) == [f"{released}/lens.json is complete already"]
    assert (released / "lens.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ['{"format_version": 1}', "{", "", "\xff"])
def test_another_lens_json_is_kept_unless_forced(released, code, text):
    (released / "lens.json").write_text(text, encoding="latin-1")
    message = refused(ConfigError, lambda: run(released, code))
    assert message == f"{released}/lens.json exists and says something else; --force replaces it"
    assert (released / "lens.json").read_text(encoding="latin-1") == text
    assert run(released, code, force=True)[0].startswith(f"{released}/lens.json replaced")
    assert written(released)["format_version"] == 1


# --- folders that are none ---


@pytest.mark.parametrize(
    "part", ["model_index.json", "transformer/config.json", "text_encoder", "tokenizer", "vae", "scheduler"]
)
def test_incomplete_folder(released, code, part):
    path = released / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = refused(ArtifactError, lambda: run(released, code))
    assert message.startswith(f"{released} is no folder in the released layout: {part}")
    assert not (released / "lens.json").exists()


def test_no_folder(tmp_path, code):
    assert "is no folder in the released layout" in refused(ArtifactError, lambda: run(tmp_path / "nowhere", code))


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not valid JSON"), ("[]", "is not a JSON object"), (None, "cannot be read")]
)
def test_damaged_config(released, code, part, text, words):
    path = released / part / "config.json"
    path.unlink()
    path.mkdir() if text is None else path.write_text(text)
    message = refused(ArtifactError, lambda: run(released, code))
    assert message.startswith(f"{path} {words}")


@pytest.mark.parametrize(
    ("part", "fields", "words"),
    [
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "_class_name is 'FluxTransformer2DModel', not"),
        ("transformer", {"_class_name": ...}, "_class_name is None"),
        ("transformer", {"gate_mlp": False}, "gate_mlp is False; every release has True"),
        ("transformer", {"rms_norm": False}, "rms_norm is False"),
        ("transformer", {"multi_layer_encoder_feature": False}, "multi_layer_encoder_feature is False"),
        ("transformer", {"patch_size": 1}, "patch_size is 1; every release has 2"),
        ("transformer", {"num_layers": ...}, "num_layers is missing"),
        ("transformer", {"selected_layer_index": ...}, "selected_layer_index is missing"),
        ("transformer", {"enc_hidden_dim": 24}, "enc_hidden_dim is 24, but the text encoder's hidden_size is 2880"),
        ("text_encoder", {"model_type": "qwen3"}, "model_type is 'qwen3', not gpt_oss"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'; Lens knows AutoencoderKLFlux2"),
    ],
)
def test_what_was_never_released(released, code, part, fields, words):
    change(released / part / "config.json", **fields)
    message = refused(ArtifactError, lambda: run(released, code))
    assert message.startswith(f"{released}/{part}/config.json: ")
    assert words in message


def test_template_that_is_not_in_the_code_leaves_no_file(released, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused(ConfigError, lambda: run(released, tmp_path / "empty"))
    assert "of 0 Python files" in message
    assert not (released / "lens.json").exists()


# --- the command ---


def test_command(released, code):
    from typer.testing import CliRunner

    from lens_core.cli.main import app

    done = CliRunner().invoke(app, ["import", str(released), "--code", str(code), "--preset", "turbo"])
    assert done.exit_code == 0
    assert done.output.splitlines()[0] == f"{released}/lens.json written: 4 steps, guidance 1"
    assert written(released)["sampler"]["steps"] == 4


def test_command_tells_in_one_line_what_is_wrong(lens, released, code):
    """In a process of its own, where the hashes are the real ones."""
    done = lens("import", str(released), "--code", str(code))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"lens: --code {code} does not hold the template: system (e24f171b7b03…) and thinking (b94e")
    assert "among the strings of 2 Python files" in line


def test_import_is_light():
    names = "('torch', 'transformers', 'diffusers', 'jinja2')"
    code = f"import sys, lens_core.cli.import_model; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
