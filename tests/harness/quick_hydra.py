"""Hydra at less cost: the same settings, with the files of conf/ read, and their order found, once in a process.

Hydra reads its files for every command, finds what each asks for and merges them: that takes longer than most tests of a
command. What is shared here is shared only where all files are those of conf/. All checks of arguments, and the arguments that
set values, come in every command as they do without it; what fails is never shared.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import omegaconf._utils
import pytest
import yaml
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from harness.core.conf_files import conf_dir


@contextmanager
def quick_hydra() -> Iterator[None]:
    """Compose settings quickly inside, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        _parse_with_libyaml(patch)
        _read_once(patch)
        _order_once(patch)
        _copy_quickly(patch)
        _parse_arguments_once(patch)
        yield


def _parse_with_libyaml(patch: pytest.MonkeyPatch) -> None:
    """libyaml reads files of settings, where PyYAML comes with it. What the values are is OmegaConf's own loader's to say."""
    if not yaml.__with_libyaml__:
        return
    from yaml.cyaml import CParser

    class QuickLoader(CParser, omegaconf._utils.get_yaml_loader()):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    patch.setattr(omegaconf._utils, "get_yaml_loader", lambda: QuickLoader)


def _sources(repo: Any) -> tuple[str, ...] | None:
    """Return where `repo` reads; None where one is a test's own folder, whose files may change."""
    paths = tuple(str(source.path) for source in repo.get_sources() if source.path)
    return None if any(Path(path).is_dir() and Path(path) != conf_dir() for path in paths) else paths


def _read_once(patch: pytest.MonkeyPatch) -> None:
    """Read each file once to learn what it asks for, which changes nothing in it; and merge the same files in the same order
    once, from copies of their own, as merging takes them apart."""
    load, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    files: dict[Any, Any] = {}
    contents: dict[Any, bytes] = {}
    merged: dict[Any, bytes] = {}

    def shared_file(self: Any, config_path: str) -> Any:
        key = (_sources(self), config_path)
        if key[0] is None:
            return load(self, config_path)
        if key not in files:
            files[key] = load(self, config_path)
            contents[key] = pickle.dumps(files[key])
        return files[key]

    def own_file(self: Any, config_path: str) -> Any:
        shared, sources = shared_file(self, config_path), _sources(self)
        return shared if sources is None else pickle.loads(contents[sources, config_path])

    def copy_of_merged(self: Any, defaults: Any, repo: Any) -> Any:
        key = (_sources(repo), str(defaults))
        if key in merged:
            return pickle.loads(merged[key])
        with pytest.MonkeyPatch.context() as unshared:
            unshared.setattr(ConfigRepository, "load_config", own_file)
            repo.cache.clear()
            settings = merge(self, defaults, repo)
        if key[0] is not None:
            merged[key] = pickle.dumps(settings)
        return settings

    def keep_sources(self: Any, delegate: Any) -> None:
        self.delegate, self.cache = copy.copy(delegate), {}  # its list of sources is replaced, never changed

    patch.setattr(ConfigRepository, "load_config", shared_file)
    patch.setattr(CachingConfigRepository, "__init__", keep_sources)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", copy_of_merged)


def _order_once(patch: pytest.MonkeyPatch) -> None:
    """Walk once through the files that the same choices of groups ask for."""
    order = defaults_list._create_defaults_list
    walks: dict[Any, tuple[Any, dict[str, Any]]] = {}

    def shared_order(repo: Any, config_name: Any, overrides: Any, **how: Any) -> Any:
        choices = {name: value for name, value in vars(overrides).items() if name != "config_overrides"}
        key = (_sources(repo), config_name, str(choices), str(how))
        if key[0] is None:
            return order(repo, config_name, overrides, **how)
        if key not in walks:
            files = order(repo, config_name, overrides, **how)
            walks[key] = files, copy.deepcopy(choices)  # the walk has changed what these hold
        files, choices = walks[key]
        vars(overrides).update(copy.deepcopy(choices))
        return files

    patch.setattr(defaults_list, "_create_defaults_list", shared_order)


def _copy_quickly(patch: pytest.MonkeyPatch) -> None:
    """Copy whole settings by pickle, as Hydra copies them thrice in a command: OmegaConf takes three times as long for it."""
    slow = DictConfig.__deepcopy__

    def copy_of(self: Any, memo: dict[int, Any]) -> Any:
        if memo:  # part of a copy of more
            return slow(self, memo)
        parent, vars(self)["_parent"] = vars(self)["_parent"], None
        try:
            copied = pickle.loads(pickle.dumps(self))
        finally:
            vars(self)["_parent"] = parent
        vars(copied)["_parent"] = parent
        return copied

    patch.setattr(DictConfig, "__deepcopy__", copy_of)


def _parse_arguments_once(patch: pytest.MonkeyPatch) -> None:
    """Parse the same argument once. Hydra changes an argument's own fields later, but nothing inside them."""
    parse = OverridesParser.parse_rule
    parsed: dict[tuple[str, str], Any] = {}

    def shared_parse(self: Any, s: str, rule_name: str) -> Any:
        if (s, rule_name) not in parsed:
            parsed[s, rule_name] = parse(self, s, rule_name)
        return copy.copy(parsed[s, rule_name])

    patch.setattr(OverridesParser, "parse_rule", shared_parse)
