"""The trained gate of SeerAttention, and weights of it that others released."""
