"""Ablations: arms that differ by a few settings, trained with the same seeds and the same budget, and compared."""
