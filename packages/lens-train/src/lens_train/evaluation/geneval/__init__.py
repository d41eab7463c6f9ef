"""GenEval: short prompts about objects, numbers, colours and places, judged by an object detector and CLIP."""
