"""Parts that methods share: the base class, the registry, rules that turn scores into blocks, pooling, patterns, demos."""
