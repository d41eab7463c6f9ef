"""Getting many captions: what is finished is never bought twice."""
