"""Small PNG files, as data addresses that stand in a page."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

from torch import Tensor

GREYS, COLOURS, INDEXED = 0, 2, 3  # PNG's colour types


def png(picture: Tensor, palette: bytes = b"") -> bytes:
    """Write a picture uint8 (1 or 3 channels, height, width) as PNG.

    One channel is grey, or, with a ``palette`` of 256 times red, green and blue, the number of a colour in it.
    """
    channels, height, width = picture.shape
    kind = COLOURS if channels == 3 else INDEXED if palette else GREYS
    lines = picture.permute(1, 2, 0).reshape(height, width * channels).contiguous().numpy()
    filtered = b"".join(b"\0" + line.tobytes() for line in lines)  # each line: no filter, then its values
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))]
    if kind == INDEXED:
        parts.append(_chunk(b"PLTE", palette))
    parts += [_chunk(b"IDAT", zlib.compress(filtered, 9)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def address(content: bytes) -> str:
    """Return a PNG as the address of an image."""
    return f"data:image/png;base64,{b64encode(content).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
