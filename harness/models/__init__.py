"""Models of transformers with a method attached: loading, attention, decoding, generating."""
