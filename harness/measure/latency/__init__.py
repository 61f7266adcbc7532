"""Measuring time on real activations: one attention layer (`attention.py`), a whole prefill (`prefill.py`), and decoding
(`decoding.py`)."""

from harness.measure.latency.attention import AttentionTiming, time_attention
from harness.measure.latency.decoding import DecodeTiming, time_decoding
from harness.measure.latency.prefill import PrefillTiming, time_prefill

__all__ = ["AttentionTiming", "DecodeTiming", "PrefillTiming", "time_attention", "time_decoding", "time_prefill"]
