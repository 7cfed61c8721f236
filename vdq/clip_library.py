"""open_clip, imported without wandb: timm, which it imports, imports wandb where it finds it, and `logger=csv` promises
not to.
"""

import sys

_hide = "wandb" not in sys.modules
if _hide:
    sys.modules["wandb"] = None
import open_clip  # noqa: E402

if _hide:
    del sys.modules["wandb"]

__all__ = ["open_clip"]
