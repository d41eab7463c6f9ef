"""Built-in safety checkers, and the gate that asks all of them."""
