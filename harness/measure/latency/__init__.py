"""Measuring time: one attention layer (`attention.py`) and a whole prefill (`prefill.py`), on real activations."""

from harness.measure.latency.attention import AttentionTiming, time_attention
from harness.measure.latency.prefill import PrefillTiming, time_prefill

__all__ = ["AttentionTiming", "PrefillTiming", "time_attention", "time_prefill"]
