"""Parts that methods of decoding share: the base class, vectors kept for each block, the demo."""
