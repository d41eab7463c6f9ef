"""Run an ablation."""
