"""The training loop: one step, repeated within a budget, saved and resumed."""
