"""The latency study: attention kernels timed on a model's shape without the model (`python -m harness job=kernel_speed`)."""
