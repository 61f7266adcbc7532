"""Training gates for a model: distillation of its own attention map."""
