"""Run the stages of a pipeline in order, skip what is done, resume what was cut off."""
