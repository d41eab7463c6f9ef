"""Training state on disk: written beside the training, read back by any number of ranks."""
