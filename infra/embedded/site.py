"""Where one server lives: its directory, and what ties it to the stack that owns the directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Site:
    """`lock_fd` is held open by the server's supervisor, so that the stack's directory stays locked until the last of
    its servers is gone; `remove_root` is the stack's directory when that is temporary."""

    directory: Path
    lock_fd: int | None = None
    remove_root: Path | None = None
