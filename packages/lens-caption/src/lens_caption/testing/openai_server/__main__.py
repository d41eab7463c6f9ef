"""`python -m lens_caption.testing.openai_server`."""

from __future__ import annotations

from lens_caption.testing.openai_server.command import main

if __name__ == "__main__":
    main()
