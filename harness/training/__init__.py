"""Training that the harness does itself: the bundled model and the gates of learned methods."""
