"""Records of a study: what a cell is, how it is stored, where it came from, whether its row may be shown."""
