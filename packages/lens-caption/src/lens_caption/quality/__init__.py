"""Whether captions are any good: gates, canaries, a judge on a sample, and the difference between two layers."""
