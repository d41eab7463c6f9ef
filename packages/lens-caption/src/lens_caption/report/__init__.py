"""What the captions of a set of images are like: numbers for machines, and a page for people."""
