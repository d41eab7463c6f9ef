"""Planning: which samples every step is trained on, decided ahead and without a state."""
