"""Loading plugins: one by one, with every fault told in a line and nothing else affected."""

from __future__ import annotations

import json

import pytest

from lens_core.errors import MissingExtraError, PluginError, UnknownComponentError
from lens_core.hookspecs import hookimpl
from lens_core.plugins import Offer, Plugin
from lens_core.registry import registry_of
from lens_core.specs import KINDS, CaptionerSpec, FilterSpec


def test_three_faults_are_three_lines_and_nothing_else_suffers(lens):
    clean = lens("plugins", "list")
    done = lens("plugins", "list", fakes=("broken", "clash", "misspelt"))
    assert done.returncode == 0
    body, problems = done.stdout.split("\nproblems\n")
    lines = problems.strip().splitlines()
    assert len(lines) == 3
    broken, misspelt, clash = lines
    assert "fake_broken (lens_fake_broken 1.2)" in broken
    assert "ModuleNotFoundError: No module named 'no_such_library'" in broken
    assert "'lens_captionors'" in misspelt
    assert "did you mean 'lens_captioners'?" in misspelt
    assert "'min-area' is offered by core (lens-core 0.1.0) and fake_clash (lens_fake_clash 1.2)" in clash
    assert "LENS_DISABLE_PLUGINS=fake_clash" in clash or "LENS_DISABLE_PLUGINS=core" in clash
    for line in clean.stdout.strip().splitlines():
        assert " ".join(line.split()) in " ".join(body.split())


def test_json_list_has_plugins_components_and_problems(lens):
    done = lens("plugins", "list", "--json", fakes=("good", "broken"))
    listed = json.loads(done.stdout)
    assert {plugin["name"] for plugin in listed["plugins"]} >= {"core", "caption", "train", "serve", "fake_good"}
    numbers = next(item for item in listed["components"] if item["name"] == "numbers")
    assert (numbers["kind"], numbers["distribution"], numbers["version"]) == ("stages", "lens_fake_good", "1.2")
    assert [problem["plugin"] for problem in listed["problems"]] == ["fake_broken"]


def test_disabled_plugin_offers_nothing(with_fakes, monkeypatch):
    assert "numbers" in with_fakes("good")["stages"]
    monkeypatch.setenv("LENS_DISABLE_PLUGINS", "fake_good, other")
    registry = with_fakes("good")
    assert "numbers" not in registry["stages"]
    assert next(plugin for plugin in registry.plugins if plugin.name == "fake_good").disabled


def test_a_hook_that_fails_late_costs_only_itself(with_fakes):
    registry = with_fakes("late")
    assert [problem.plugin.name for problem in registry.problems] == ["fake_late"]
    assert "yielded 'not a spec', not a FilterSpec" in str(registry.problems[0])
    assert "min-area" in registry["filters"]


def test_contested_name_is_refused_and_names_both(with_fakes):
    registry = with_fakes("clash")
    with pytest.raises(PluginError, match=r"core \(lens-core .*fake_clash \(lens_fake_clash 1.2\)"):
        registry.spec("filters", "min-area")
    assert registry.spec("filters", "decodable").name == "decodable"


def test_unknown_name_suggests_lists_and_quotes_the_broken(with_fakes):
    registry = with_fakes("broken")
    with pytest.raises(UnknownComponentError) as caught:
        registry.spec("captioners", "scene-graf")
    message = str(caught.value)
    assert "did you mean 'scene-graph'?" in message
    assert "openai" in message
    assert "fake_broken" in message
    assert "\n" not in message


def test_missing_library_names_the_pip_line(with_fakes):
    registry = with_fakes("good")
    with pytest.raises(MissingExtraError, match=r"library-that-nobody-has.*pip install 'lens_fake_good\[extra\]'"):
        registry.require_libraries("filters", "needs-extra")


def test_missing_module_of_the_plugin_is_told_from_a_missing_library(with_fakes):
    registry = with_fakes("good")
    with pytest.raises(PluginError, match="names the module 'fake_good_nowhere', which does not exist"):
        registry.spec("datasets", "lost").load_target()


def test_show_prints_options(lens):
    done = lens("plugins", "show", "stage", "numbers", fakes=("good",))
    assert "count: integer (> 0) = 3" in done.stdout
    assert "How many numbers." in done.stdout
    for kind, name in [("safety-checkers", "block-list"), ("text encoders", "small"), ("text-encoder", "small")]:
        shown = lens("plugins", "show", kind, name)
        assert shown.returncode == 0, shown.stderr
    unknown = lens("plugins", "show", "gadget", "numbers")
    assert unknown.returncode == 2
    assert "there is no kind 'gadget'" in unknown.stderr


def test_commands_of_plugins_run_and_show_in_help(lens):
    assert "hello" in lens("--help", fakes=("good",)).stdout
    assert lens("hello", fakes=("good",)).stdout == "hello from a plugin\n"


@pytest.mark.parametrize("name", ["Upper", "under_score", "", "a--b", "-a"])
def test_names_are_kebab_case(name):
    with pytest.raises(ValueError, match="kebab"):
        CaptionerSpec(name=name, summary="x", config="a:B", target="a:B")


def test_dotted_paths_are_checked():
    with pytest.raises(ValueError, match=r"package\.module:attribute"):
        FilterSpec(name="x", summary="x", config="a.b.C", target="a:B")


def test_registry_is_a_value_of_its_offers():
    plugin = Plugin(name="p", module="p", distribution="d", version="1")
    spec = FilterSpec(name="x", summary="x", config="a:B", target="a:B")
    registry = registry_of([Offer(kind="filters", spec=spec, plugin=plugin)])
    assert registry.spec("filters", "x") is spec
    assert list(registry["filters"]) == ["x"]
    assert all(len(registry[kind]) == 0 for kind in KINDS if kind != "filters")


def test_every_kind_has_a_hook_with_words():
    from lens_core import hookspecs

    for kind in KINDS:
        assert getattr(hookspecs, f"lens_{kind}").__doc__.startswith("Offer")
    assert hookimpl.project_name == hookspecs.PROJECT
