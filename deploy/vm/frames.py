"""The protocol between the host and the agent in the guest: frames on one virtio-serial port.

A frame is a type (u8), a command's number (u32) and a length (u32), big-endian, then that many
bytes. A port carries any byte, so a command's output comes back unharmed.
"""

import struct

HEADER = struct.Struct("!BII")
payload_bytes_max = 256 * 1024
stdin_window_bytes = 256 * 1024    # input on its way to a command, not yet taken by it

# Host to guest.
START = 1       # JSON: argv, cwd, env, terminal (null, or [rows, columns])
STDIN = 2       # bytes; none at all means the end
SIGNAL = 3      # u32: to the command's whole process group
RESIZE = 4      # u16 rows, u16 columns

# Guest to host.
READY = 16      # JSON: what the guest is
STDOUT = 17
STDERR = 18
TAKEN = 19      # u32: bytes of input that the command has taken
EXIT = 20       # i32: exit status; minus the signal's number when a signal ended it
NOT_STARTED = 21   # text: why

U32 = struct.Struct("!I")
I32 = struct.Struct("!i")
SIZE = struct.Struct("!HH")


class BadFrame(Exception):
    """The other side sent something that is no frame."""


def pack(kind, number, payload=b""):
    return HEADER.pack(kind, number, len(payload)) + bytes(payload)


class Parser:
    """Cuts a byte stream into frames."""

    def __init__(self):
        self._bytes = bytearray()

    def feed(self, data):
        """Yields (type, number, payload) for every frame that is now complete."""
        self._bytes += data
        while len(self._bytes) >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self._bytes)
            if length > payload_bytes_max:
                raise BadFrame(f"a frame of type {kind} claims {length} bytes")
            if len(self._bytes) < HEADER.size + length:
                return
            payload = bytes(self._bytes[HEADER.size:HEADER.size + length])
            del self._bytes[:HEADER.size + length]
            yield kind, number, payload
