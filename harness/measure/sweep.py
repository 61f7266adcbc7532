"""What the jobs of one command share: the model of the settings, loaded once for a whole sweep, and the tokens of prompts."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.core.activity import CURRENT
from harness.measure.failures import FailureLog

if TYPE_CHECKING:  # torch and transformers take seconds to import, and a job that only reports needs neither
    from rich.console import Console

    from harness.core.settings import Settings
    from harness.models.loading import LoadedModel, ModelConfig
    from harness.tasks.sample import Sample


@dataclass
class SweepCache:
    """The holder that whoever runs the jobs of a sweep (`-m`) hands to each of them; a single job makes its own.

    tokens: the token ids of prompts; contexts: how many of them come before the question; problems: what is wrong with a
    sample, None where it is sound. All by the model's revision hash and the sample. Only the model that was asked for last is
    held. in_memory: a model that is there already, which all jobs run on, whatever their settings name. failures: what failed
    in the command; at_zero: distances of self-checks that are the same for all sparsities of a method
    (`harness.measure.self_check`). before_model: what is to be done once nothing is known to be wrong with a job, before its
    model is loaded.
    """

    tokens: dict[tuple[str, Sample], array[int]] = field(default_factory=dict)
    contexts: dict[tuple[str, Sample], int] = field(default_factory=dict)
    problems: dict[tuple[str, Sample], str | None] = field(default_factory=dict)
    in_memory: LoadedModel | None = None
    failures: FailureLog = field(default_factory=FailureLog)
    at_zero: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    before_model: Callable[[], None] | None = None
    _config: ModelConfig | None = None
    _loaded: LoadedModel | None = None

    def holds(self, settings: Settings) -> bool:
        """Return whether the model of the settings is loaded."""
        return self.in_memory is not None or (self._loaded is not None and model_config(settings) == self._config)

    def model(self, settings: Settings, console: Console | None = None) -> LoadedModel:
        """Return the model of the settings, loaded where it isn't the one of the job before; the console says so. Raises
        UserError."""
        if self.in_memory is not None:
            self._note_begin()
            return self.in_memory
        config = model_config(settings)
        self._note_begin()
        if self._loaded is None or not self.holds(settings):
            self._loaded = None  # let go of the other one first: a device may not hold both
            say(console, settings, f"loading {config.name}")
            self._config, self._loaded = config, load_quietly(config)
        return self._loaded

    def _note_begin(self) -> None:
        if self.before_model is not None:
            self.before_model()


def say(console: Console | None, settings: Settings, text: str) -> None:
    """Say what begins now and may take long, where the settings show progress; whoever asks for the state is told anyway."""
    CURRENT.begin(text)
    if console is not None and settings.progress:
        console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def describe_quietly(config: ModelConfig) -> LoadedModel | None:
    """Return a model without its weights, None where that can't be had (`harness.models.description`). Raises UserError."""
    from harness.models.description import describe_model

    return describe_model(config)


def model_config(settings: Settings) -> ModelConfig:
    """Return which model the settings name, and how to hold it. Raises UserError for kernels that can't run in its dtype, which
    is said before the model is loaded."""
    from harness.models.kernel_choice import check_interpreter
    from harness.models.loading import ModelConfig
    from harness.models.shape import ModelShape

    check_interpreter({"kernel": settings.kernel, "decode_kernel": settings.decode_kernel}, settings.dtype, settings.device)
    name, path, shape = str(settings.model["name"]), settings.model["path"], settings.model.get("shape")
    asked_length, chat = settings.model.get("max_length"), settings.chat_options
    drawn = None if shape is None else ModelShape.of(shape, settings.seed)
    return ModelConfig(name, path or "", settings.dtype, settings.device, asked_length, chat, drawn)


def load_quietly(config: ModelConfig) -> LoadedModel:
    """Load a model without transformers' progress bar of the weights: the only bar is that of the samples. Raises UserError."""
    from transformers.utils import logging

    from harness.models import loading

    logging.disable_progress_bar()
    return loading.load_model(config)


def load_model_of(settings: Settings, console: Console | None = None) -> LoadedModel:
    """Load the model of the settings, for a job that shares it with no other; the console says so. Raises UserError."""
    config = model_config(settings)
    say(console, settings, f"loading {config.name}")
    return load_quietly(config)
