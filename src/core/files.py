"""Files that hold secrets: who on this machine may open them."""

import stat
from pathlib import Path
from typing import Literal


def who_else_may_open(path: Path) -> Literal["Everyone", "A group"] | None:
    """`None` if it is the owner alone. Of a link, the mode of its target counts."""
    mode = path.stat().st_mode
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        return "Everyone"
    return "A group" if mode & (stat.S_IRGRP | stat.S_IWGRP) else None


def how_to_close(path: Path) -> str:
    """What makes it its owner's alone. Kubernetes mounts secrets as links, whose targets cannot be changed in place."""
    command = f"chmod 600 {path.resolve()}"
    return f"{command}, or defaultMode: 0400 for a secret of Kubernetes" if path.is_symlink() else command
