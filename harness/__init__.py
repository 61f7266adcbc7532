"""Runs sparse attention methods in real models: tasks, latency, training, records, figures (`python -m harness`)."""
