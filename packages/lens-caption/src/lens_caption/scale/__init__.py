"""Many images, many machines: the images in parts, each captioned by one worker at a time and published once.

config.py       who does the work: one process, the machines that run the same command, or a Ray cluster
plan.py         the parts, and the shared folder where their outcomes are published
allowance.py    one budget for all workers, drawn from in small amounts
takeover.py     what one process had bought before there were several
worker.py       what a worker does: claim a part, caption it, publish it, until none is left
ray_cluster.py  workers on a Ray cluster
"""
