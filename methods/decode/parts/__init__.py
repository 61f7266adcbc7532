"""Parts that methods of decoding share."""
