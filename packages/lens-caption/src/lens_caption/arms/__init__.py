"""Caption arms: what an experiment does to a caption layer by rule, and how much a layer says."""
