"""The gradient of block-sparse attention from its output and log-sum-exp, in two passes that need no atomics.

The first goes over the queries by their lists of key blocks: dQ, and each row's sum of dO·O. The second goes over the key
blocks by the index's transpose, made on the device: dK and dV. Both compute S and dP anew, so nothing of the size of the map
is stored, and every sum has one order: two runs give the same bits.

Floor and prediction for one H200 (bfloat16, 32 query heads, 8 KV heads of 128, blocks of 128, 10 % of the causal blocks), from
arithmetic, not measured: a product over the 105,267 kept blocks of 32k tokens is 0.44 TFLOP, over the 1,679,360 of 128k 7.04.

| | products | 32k | 128k |
| --- | --- | --- | --- |
| forward | 2 | 0.88 TFLOP | 14.1 |
| backward, S and dP once | 5 | 2.21 | 35.2 |
| backward in two passes | 7 | 3.09 | 49.3 |
| all at 650 TFLOP/s, which dense FlashAttention-3 reaches | 9 | 6.1 ms | 98 |
| forward as measured, backward at 330 TFLOP/s | 9 | 11.4 ms | 179 |

Bytes: a pair of blocks reads 64 KiB of K and V, or of Q and dO: 6.9 GB a pass at 32k, out of L2 where heads that share a KV
head run side by side. From memory each tensor comes at least once: 2.0 GB, 0.5 ms at 4.3 TB/s.
"""
