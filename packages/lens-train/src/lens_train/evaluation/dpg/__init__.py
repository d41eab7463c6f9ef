"""DPG-Bench and its like: dense prompts, judged by yes-or-no questions that a vision model answers."""
