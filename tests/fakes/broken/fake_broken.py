"""A plugin whose library is missing."""

import no_such_library  # noqa: F401
