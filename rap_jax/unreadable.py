"""Why a file cannot be read: it is damaged, or something around it stands in the way.

Only of a damaged file a message may say that it has to be made again. A missing permission, memory that runs out, a
package that is not installed: these leave the file as good as it was.
"""

import errno
import os

import jax

_AROUND = (MemoryError, ImportError, jax.errors.JaxRuntimeError)
# How libraries without an error of their own for it say that they may not, or cannot, read.
_WORDS = ("PERMISSION_DENIED", "Permission denied", "RESOURCE_EXHAUSTED", "No space left on device")
# zipfile seeks to places before the start of a file that was cut short.
_OF_CONTENT = (None, errno.EINVAL)


def is_damage(error: BaseException) -> bool:
    """Whether the content of the file is at fault, as far as an error that reading it has raised can tell."""
    around = isinstance(error, _AROUND) or any(word in str(error) for word in _WORDS)
    return not around and not (isinstance(error, OSError) and error.errno not in _OF_CONTENT)


def unreadable(path: str | os.PathLike[str], error: Exception, remedy: str) -> ValueError:
    """The error for a file that cannot be read, with the `remedy` for a damaged one only where it is damaged."""
    if is_damage(error):
        return ValueError(f"{path} is damaged ({error!r}); {remedy}.")
    return ValueError(f"{path} cannot be read here ({error!r}). The file may be good, so keep it; mend that instead.")
