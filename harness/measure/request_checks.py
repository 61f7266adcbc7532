"""What no model makes right, told from the settings alone: knobs, names of kernels, and data."""

from __future__ import annotations

from collections.abc import Sequence

from attention_kernels import block_sparse, column_sparse, decode, dense

from harness.arms.build import build_decode_method, build_method, decodes_densely
from harness.core.errors import UserError
from harness.core.mistakes import as_user_error
from harness.core.question import QUESTION_SEEN
from harness.core.settings import Settings
from harness.core.sizing import FULL
from harness.measure.latency.limits import TimingLimits, timing_limits
from harness.tasks import registry
from harness.tasks.haystack import haystack_source, load_haystack
from harness.tasks.ruler.samples import check_words
from methods.parts.base import Method

STEPS_SETTING, GRAPH_SETTING = "job.decode_steps", "job.decode_graph"


def check_without_model(settings: Settings, task_names: Sequence[str]) -> None:
    """Raise UserError for what no model makes right: a question or a decoding that the job does not take, a knob out of range,
    a kernel that there isn't, layers that can't be timed, and data of the tasks that can't be read."""
    limits = timing_limits(settings.latency_repeats, settings.latency_seconds, settings.job, settings.options)
    if settings.job in ("latency", "perplexity") and not limits.decode_batches and not decodes_densely(settings.decode):
        instead = ", or time decoding too, as job.decode_batches=[1,4] does" if settings.job == "latency" else ""
        raise UserError(
            f"job={settings.job} measures prefill, which decode={settings.decode} does not change: leave decode out{instead}"
        )
    check_decoding(settings, limits)
    if settings.question != QUESTION_SEEN and (silent := [name for name in task_names if not registry.get(name).asks]):
        raise UserError(
            f"question={settings.question}: no question follows the context in {', '.join(silent)}: leave these tasks out"
        )
    check_kernels(settings)
    try:
        method = build_method(settings)
        build_decode_method(settings)
    except UserError:
        raise
    except ValueError as error:  # methods/ raise plain ValueErrors, one line each
        raise as_user_error(error) from error
    if settings.knob_value is not None and method.calibrates() is None:
        raise UserError(
            f"knob_value={settings.knob_value}: {settings.method} needs none at sparsity={settings.sparsity}: leave it out"
        )
    check_chunk(settings.prefill_chunk, method)
    check_data(settings, task_names)


def check_decoding(settings: Settings, limits: TimingLimits) -> None:
    """Raise UserError for settings of timed decoding where none is timed, and for rounds that leave nothing of a prompt."""
    silent = [name for name in (STEPS_SETTING, GRAPH_SETTING) if name in settings.given]
    if not limits.decode_batches and silent:
        raise UserError(f"{silent[0]} says how decoding is timed, and none is: say of which batches, job.decode_batches=[1,4]")
    if limits.decode_graph and limits.decode_batches and settings.device.type != "cuda":
        raise UserError(f"{GRAPH_SETTING}=true: CUDA graphs need a GPU, and this runs on {settings.device}: leave it out")
    if limits.decode_batches and limits.decode_steps > settings.length - 2:
        raise UserError(
            f"{STEPS_SETTING}={limits.decode_steps}: these and one step before them must leave some of "
            f"length={settings.length}; choose {max(1, settings.length - 2)} or less"
        )


def check_chunk(chunk: int | None, method: Method) -> None:
    """Raise UserError for chunks of prompts that would cut a method's blocks."""
    step = 1 if method.family == "none" else method.chunk_step
    if chunk is not None and chunk % step:
        raise UserError(
            f"prefill.chunk={chunk}: must be a multiple of the blocks of {step} tokens that {method.name} has, for example "
            f"{-(-chunk // step) * step}"
        )


def check_kernels(settings: Settings) -> None:
    """Raise UserError for a name that no kernel has. Whether one of that name can run says who runs it."""
    sparse = dict.fromkeys((*block_sparse.KERNELS, *column_sparse.KERNELS))
    for setting, name, known in (
        ("kernel", settings.kernel, sparse),
        ("dense_kernel", settings.dense_kernel, dense.KERNELS),
        ("decode_kernel", settings.decode_kernel, decode.KERNELS),
    ):
        if name not in ("auto", *known):
            raise UserError(f"{setting}={name} is not known; choose one of: auto, {', '.join(known)}")


def check_data(settings: Settings, task_names: Sequence[str]) -> None:
    """Read what the prompts of tasks are made of, once for the whole command. Raises UserError where that can't be had, and for
    a sizing of prompts that are taken as they are."""
    tasks = [registry.get(name) for name in task_names]
    sizing = settings.data.get("sizing", FULL)
    if sizing != FULL and (taken := [task.name for task in tasks if task.fixed]):
        raise UserError(
            f"task.sizing={sizing}: the prompts of {', '.join(taken)} have lengths of their own: leave these tasks out"
        )
    for task in tasks:
        task.files(settings.data)
    if None in [task.source(settings.data) for task in tasks]:  # generated
        if (words := settings.data.get("words")) is not None:
            check_words(words, settings.length)
        load_haystack(haystack_source(settings.data))
