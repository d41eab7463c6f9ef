"""Built-in rewriters that ask a language model: behind an OpenAI-style endpoint, or in a folder on this machine."""
