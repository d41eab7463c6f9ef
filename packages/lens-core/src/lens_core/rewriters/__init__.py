"""Built-in rewriters: from a short prompt to one like the training captions."""
