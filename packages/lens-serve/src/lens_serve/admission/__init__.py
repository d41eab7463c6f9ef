"""Who may ask, how much may wait, and what those who come too early are told.

keys.py        API keys: who asks
quotas.py      how much a key may ask for in a day, and at once
tickets.py     places that were promised to those who were refused
admission.py   all of it: a request comes in, or is told when it can
"""

from __future__ import annotations

__all__: list[str] = []
