"""Bugs of the product that the simulation has found and that are not mended yet, each with the smallest mend.

They are mended in memory while the simulation runs, so that it goes on to find the next; `--as-is` leaves them as they are.
Delete an entry with the commit that mends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .patch import Patch

KNOWN: Final[tuple[Callable[[Patch], None], ...]] = ()
