"""gpt-oss with the released prompt template, the text encoder of the released weights."""
