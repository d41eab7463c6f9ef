"""The stage that serves what a pipeline has trained."""
