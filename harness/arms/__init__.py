"""Arms: a method with its knobs, weights and kernels, ready to run on a loaded model."""
