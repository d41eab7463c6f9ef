"""Prompt following in the procedural scenes, judged exactly."""
