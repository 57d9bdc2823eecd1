"""A small SoundFont, built in code."""

import struct

import numpy as np

RATE = 44_100
PADDING = 46  # silent samples that the format requires after each sample


def soundfont(loudness: float) -> bytes:
    """Return an .sf2 file with one preset: a looped sine of 441 Hz; `loudness` is its amplitude, 0 to 1."""
    wave = loudness * 32_767 * np.sin(2 * np.pi * np.arange(RATE) / 100)
    samples = np.append(wave, np.zeros(PADDING)).astype("<i2").tobytes()
    name = b"Sine".ljust(20, b"\0")
    tables = {
        b"phdr": struct.pack("<20sHHHIII", name, 0, 0, 0, 0, 0, 0)
        + struct.pack("<20sHHHIII", b"EOP", 0, 0, 1, 0, 0, 0),
        b"pbag": struct.pack("<HHHH", 0, 0, 1, 0),
        b"pmod": bytes(10),
        b"pgen": struct.pack("<HHHH", 41, 0, 0, 0),  # the instrument
        b"inst": struct.pack("<20sH", name, 0) + struct.pack("<20sH", b"EOI", 1),
        b"ibag": struct.pack("<HHHH", 0, 0, 2, 0),
        b"imod": bytes(10),
        b"igen": struct.pack("<HHHHHH", 54, 1, 53, 0, 0, 0),  # loop; the sample
        b"shdr": struct.pack("<20sIIIIIBbHH", name, 0, RATE, 100, RATE - 100, RATE, 69, 0, 0, 1)
        + struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    about = _chunk(b"ifil", struct.pack("<HH", 2, 1)) + _chunk(b"isng", b"EMU8000\0") + _chunk(b"INAM", b"Sine\0\0")
    pdta = b"".join(_chunk(kind, table) for kind, table in tables.items())
    lists = ((b"INFO", about), (b"sdta", _chunk(b"smpl", samples)), (b"pdta", pdta))
    return _chunk(b"RIFF", b"sfbk" + b"".join(_chunk(b"LIST", kind + body) for kind, body in lists))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body
