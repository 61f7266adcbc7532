"""What conf/method states of a method itself holds for its class, and is none of its knobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import methods
from harness.core import conf_files
from harness.core import method_facts as module
from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.core.knob_names import usual_knobs
from harness.core.method_facts import MethodFacts, method_facts
from harness.core.settings import RESERVED


@pytest.mark.parametrize("name", methods.names())
def test_knobs_that_came_later_are_knobs(name: str) -> None:
    """What they stand for in rows from before them need not be their default: a command can ask for it."""
    config = OmegaConf.load(conf_dir() / "method" / f"{name}.yaml")
    added = method_facts(name).added_knobs
    assert set(added) <= set(config) - set(RESERVED)
    methods.build(name, sparsity=None if methods.get(name).family == "none" else 0.5, **added)


@pytest.mark.parametrize("name", methods.names())
def test_a_method_keeps_its_sparsity_by_formula_where_its_facts_say_how(name: str) -> None:
    if knobs := method_facts(name).formula:
        assert methods.build(name, sparsity=0.5).calibrates() is not None, "else its defaults would do"
        assert methods.build(name, sparsity=0.5, **knobs).calibrates() is None


@pytest.mark.parametrize("name", methods.registry.released())
def test_what_rows_as_released_need_not_name_is_the_releases(name: str) -> None:
    """Of the knobs that names know, those in which the release differs from the file."""
    release, usual = methods.get(name).release, usual_knobs(name)
    assert release is not None
    settings = {knob: value for knob, value in release.settings.items() if knob in usual}
    assert method_facts(name).released == {knob: value for knob, value in settings.items() if value != usual[knob]}


def test_there_is_one_bound() -> None:
    assert [name for name in methods.names() if method_facts(name).bound] == ["oracle"]


def test_facts_are_no_knobs() -> None:
    assert "about" in RESERVED


def test_a_method_of_another_version_has_none() -> None:
    assert method_facts("of_another_version") == method_facts("../job/maps") == method_facts("x" * 5000) == MethodFacts()


def test_a_fact_that_is_not_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine_here.yaml").write_text("name: mine_here\nabout: {bond: true}\n")
    monkeypatch.setattr(module, "groups", lambda: {"method": ["mine_here"]})
    monkeypatch.setattr(conf_files, "conf_dir", lambda: tmp_path)
    with pytest.raises(UserError, match=r"mine_here\.yaml: about holds bond; it may hold: bound, added_knobs"):
        method_facts("mine_here")
