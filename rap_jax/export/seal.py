"""A hash at the end of an ONNX file, by which a flipped bit in its weights is noticed.

Protocol buffers that are joined are one message, so the hash of a file can be its own last entry of metadata: every
reader of ONNX sees it as metadata, and no reader has to know of it. A file without one is not checked.
"""

import hashlib

_KEY = b"rap_jax_sha256"
_HEX = 64
# metadata_props is field 14 of a ModelProto, a message with the strings key (1) and value (2).
_FIELD, _STRING_1, _STRING_2 = 14 << 3 | 2, 1 << 3 | 2, 2 << 3 | 2
_ENTRY = bytes([_STRING_1, len(_KEY)]) + _KEY + bytes([_STRING_2, _HEX])
_PREFIX = bytes([_FIELD, len(_ENTRY) + _HEX]) + _ENTRY


def seal(content: bytes) -> bytes:
    """The serialised model with its hash as the last entry of its metadata."""
    return content + _PREFIX + hashlib.sha256(content).hexdigest().encode()


def check_seal(name: str, content: bytes) -> None:
    """Compares the hash with what comes before it.

    Raises:
      ValueError: they differ; names the file.
    """
    end = len(content) - len(_PREFIX) - _HEX
    if end < 0 or content[end : end + len(_PREFIX)] != _PREFIX:
        return
    if hashlib.sha256(content[:end]).hexdigest().encode() != content[-_HEX:]:
        raise ValueError(
            f"{name} is not what was written, by its SHA-256. If it is damaged, copy it or export it again; if it was "
            f"changed on purpose, delete its metadata {_KEY.decode()}."
        )
