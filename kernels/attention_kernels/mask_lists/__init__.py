"""From a mask of key blocks to each row's list of them, which is what kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.backends import KERNELS, check_triton, triton_problem
from attention_kernels.mask_lists.reference import mask_lists_reference


def mask_lists(
    mask: Tensor, *, q_block: int, k_block: int, q_len: int, k_len: int, width: int | None, kernel: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return counts, int32 [B,H,Mq], and ascending indices, int32 [B,H,Mq,width], of a mask, bool [B,H,Mq,Nk], as they are in a
    `BlockIndex`: blocks that are not causal are dropped, the diagonal is kept.

    width: of the lists, at least the longest; None: that of the longest row, which waits for the device. kernel: triton makes
    lists of a given width in one launch; reference in about fifteen; auto takes triton on CUDA where it is there. The lists are
    the same. Raises ValueError where triton is asked for and can't run.
    """
    shape = (q_len, k_len, q_block, k_block)
    if kernel not in ("auto", *KERNELS):
        raise ValueError(f"kernel={kernel} is not known; choose one of: auto, {', '.join(KERNELS)}")
    if kernel == "triton":
        check_triton(mask.device, torch.float32)  # numbers of blocks are of no type that it could lack
    elif kernel == "auto" and mask.is_cuda and width is not None and triton_problem(mask.device, torch.float32) is None:
        kernel = "triton"
    if kernel == "triton" and width is not None and mask.numel():
        from attention_kernels.mask_lists.triton_kernel import mask_lists_triton  # imported late: needs triton

        return mask_lists_triton(mask, shape, width)
    return mask_lists_reference(mask, shape, width)
