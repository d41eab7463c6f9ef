"""What `lens serve` makes of a file, options and `--set`; and the one line it says of each mistake."""

from __future__ import annotations

import pytest

from lens_core.errors import ConfigError, LensError
from lens_serve.options import settings_from


def test_a_folder_is_enough():
    settings = settings_from(models=["some/folder"])
    assert [(model.name, model.folder) for model in settings.models] == [("lens", "some/folder")]
    assert settings.listen.host == "127.0.0.1"
    assert settings.listen.keys is None


def test_without_keys_strangers_are_told_the_metrics_only_if_it_is_said():
    assert settings_from(models=["a"]).listen.metrics_port == 9464
    assert settings_from(models=["a"], listen={"insecure": True}).listen.metrics_port is None
    assert settings_from(models=["a"], listen={"insecure": True, "keys": "keys.json"}).listen.metrics_port == 9464
    said = settings_from(models=["a"], listen={"insecure": True}, overrides=["listen.metrics_port=9464"])
    assert said.listen.metrics_port == 9464


def test_several_models_have_names():
    settings = settings_from(models=["base=a", "turbo=b=c"], loras=["ink=ink.safetensors"])
    assert [(model.name, model.folder) for model in settings.models] == [("base", "a"), ("turbo", "b=c")]
    assert [model.loras for model in settings.models] == [{"ink": "ink.safetensors"}, {}]


def test_options_come_before_the_file_and_set_before_both(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(
        "models:\n- {name: mine, folder: model, loras: {ink: ink.safetensors}}\n"
        "listen: {port: 1, host: localhost, keys: keys.json}\nbounds: {max_steps: 7}\n"
        "safety:\n- {type: block-list, words: [goblin]}\n"
    )
    settings = settings_from(file=str(file), listen={"port": 2}, overrides=["bounds.max_images=2", "listen.port=3"])
    assert (settings.listen.port, settings.listen.host) == (3, "localhost")
    assert (settings.bounds.max_steps, settings.bounds.max_images) == (7, 2)
    assert [item.type for item in settings.safety] == ["block-list"]
    (model,) = settings.models
    assert model.folder == str(tmp_path / "model")
    assert model.loras == {"ink": str(tmp_path / "ink.safetensors")}
    assert settings.listen.keys == str(tmp_path / "keys.json")


def test_paths_that_are_typed_start_here(tmp_path, monkeypatch):
    """Those of a file start where the file is; the two may stand together."""
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf" / "serve.yaml"
    file.write_text("models:\n- {folder: mine}\noutput: {store: out}\n")
    monkeypatch.chdir(tmp_path)
    settings = settings_from(
        models=["other"], file=str(file), listen={"keys": "keys.json"}, loras=["ink=i.safetensors"]
    )
    (model,) = settings.models
    assert (model.folder, model.loras) == (str(tmp_path / "other"), {"ink": str(tmp_path / "i.safetensors")})
    assert settings.listen.keys == str(tmp_path / "keys.json")
    assert settings.output.store == str(tmp_path / "conf" / "out")


def test_names_of_files_are_any_text():
    settings = settings_from(models=["x"], listen={"keys": "🔑.json"}, loras=["ink=🦑.safetensors"])
    assert settings.listen.keys == "🔑.json"
    assert settings.models[0].loras == {"ink": "🦑.safetensors"}


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("models: [{folder: x}]\nlisten: 3\n", {"listen": {"port": 1}}),
        ("models: [{folder: x}]\nrewrite: 5\n", {"rewriter": "scene-expander"}),
        ("models: {a: b}\n", {"loras": ["ink=f"]}),
        ("models: 7\n", {}),
    ],
)
def test_options_on_a_malformed_file_are_one_line(tmp_path, content, options):
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        settings_from(file=str(file), **options)
    assert "\n" not in str(caught.value)


def test_the_demo_needs_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run `make demo` first") as caught:
        settings_from(demo=True)
    assert caught.value.exit_code == 2
    folder = tmp_path / "runs" / "quickstart" / "model-dense"
    folder.mkdir(parents=True)
    (folder / "lens.json").write_text("{}")
    settings = settings_from(demo=True)
    assert [model.name for model in settings.models] == ["demo"]
    assert settings.rewrite.rewriter.type == "scene-expander"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "there is no model to serve: give --model FOLDER"),
        ({"models": ["Name=x"]}, "models[0].name"),
        ({"models": ["a=x", "a=y"]}, "two models have one name"),
        ({"models": ["x"], "loras": ["ink"]}, "--lora: 'ink' is not of the form NAME=FILE"),
        ({"models": ["x"], "loras": ["in/k=f"]}, "models[0].loras"),
        ({"models": ["x"], "overrides": ["bounds.max_stepps=3"]}, "did you mean 'max_steps'?"),
        ({"models": ["x"], "overrides": ["listen.port=70000"]}, "listen.port"),
        ({"models": ["x"], "rewriter": "scene-expandr"}, "scene-expander"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(LensError) as caught:
        settings_from(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_file_have_lines(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("models:\n- {folder: x}\nbounds:\n  max_steps: many\n")
    with pytest.raises(ConfigError, match=r"serve.yaml:4: bounds.max_steps: .*not 'many'"):
        settings_from(file=str(file))
    file.write_text("- x\n")
    with pytest.raises(ConfigError, match=r"serve\.yaml:1: the settings of a server are a mapping"):
        settings_from(file=str(file))
