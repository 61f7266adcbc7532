"""Runs sparse attention methods in real models: tasks, latency, training, records, figures (`python -m harness`).

In Python, `import harness` gives what a notebook needs, and imports torch where it is first used:

    model = harness.load_model("bundled")
    with harness.attach(model, "block_topk", sparsity=0.9) as attached:
        model.model.generate(ids)
    frame = harness.evaluate(model, "seer", task="vt", length=2048)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout that is not installed, the folder of `attention_kernels` is not on the path. kernels/ is no package itself: the
# import name `kernels` is Hugging Face's, which transformers imports.
_KERNELS = Path(__file__).resolve().parents[1] / "kernels"
if (_KERNELS / "attention_kernels").is_dir() and str(_KERNELS) not in sys.path:
    sys.path.insert(0, str(_KERNELS))

if TYPE_CHECKING:
    from harness.core.errors import UserError
    from harness.jobs.notebook import Attached, attach, evaluate, load_model, read_rows

__all__ = ["Attached", "UserError", "attach", "evaluate", "load_model", "read_rows"]


def __getattr__(name: str) -> Any:
    """Import what a notebook asks for when it does: the command's --help and its reports need no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; it gives {', '.join(__all__)}")
    from harness.core.errors import UserError
    from harness.jobs import notebook

    return UserError if name == "UserError" else getattr(notebook, name)
