"""Files that outlive a process: URLs, artefacts, shards, caption layers, lineage."""
