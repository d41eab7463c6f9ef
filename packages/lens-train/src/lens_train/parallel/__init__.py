"""One process or many: who takes part, how modules are sharded, what is kept for the backward pass."""
