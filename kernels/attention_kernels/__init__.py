"""Operations on tensors and BlockIndex: each a folder with a plain-PyTorch reference beside its fast kernels."""
