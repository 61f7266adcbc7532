"""Runs sparse attention methods in real models: tasks, latency, training, records, figures (`python -m harness`)."""

import sys
from pathlib import Path

# In a checkout that is not installed, the folder of `attention_kernels` is not on the path. kernels/ is no package itself: the
# import name `kernels` is Hugging Face's, which transformers imports.
_KERNELS = Path(__file__).resolve().parents[1] / "kernels"
if (_KERNELS / "attention_kernels").is_dir() and str(_KERNELS) not in sys.path:
    sys.path.insert(0, str(_KERNELS))
