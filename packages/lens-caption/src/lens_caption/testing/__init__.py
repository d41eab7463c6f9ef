"""For tests and rehearsals: a server that speaks the OpenAI API, looks at the pixels, and keeps its own ledger."""
