"""Fine-tuning a model for longer texts, under dense or sparse attention (job=finetune)."""
