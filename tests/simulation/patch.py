"""Attributes that are replaced for a while."""

from __future__ import annotations

import sys
from typing import Any, Self


class Patch:
    """Use it in a `with` block: at its end all is as it was."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        before = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        self._before.append((owner, name, before))
        setattr(owner, name, value)

    def everywhere(self, original: Any, value: Any) -> None:
        """Replaces a function or constant in every module of the project that has it under its name."""
        name = original.__name__
        for module in [found for key, found in sys.modules.items() if key.startswith("sagalog.")]:
            if getattr(module, name, None) is original:
                self.set(module, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            owner, name, before = self._before.pop()
            setattr(owner, name, before)
