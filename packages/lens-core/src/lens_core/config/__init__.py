"""Configuration: pydantic models, YAML with line marks, overrides, and the pipeline file."""
