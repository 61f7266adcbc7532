"""Runs sparse attention methods in real models: tasks, latency, training, records, figures (`python -m harness`)."""

import sys
from pathlib import Path

# In a checkout that is not installed `attention_kernels` lies in kernels/, which is no package itself: the import name `kernels`
# belongs to Hugging Face's library.
_KERNELS = Path(__file__).resolve().parents[1] / "kernels"
if (_KERNELS / "attention_kernels").is_dir() and str(_KERNELS) not in sys.path:
    sys.path.insert(0, str(_KERNELS))
