#!/usr/bin/python3
"""Sends N bytes to an echo service and checks what returns, both at once; prints the rate."""

import os
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness.pattern import Pattern  # noqa: E402


def main():
    address, port, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pattern = Pattern("bulk")
    sock = socket.create_connection((address, port), timeout=60)
    start = time.monotonic()

    def send():
        for chunk in pattern.chunks(total):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    offset = 0
    while piece := sock.recv(1 << 19):
        if piece != pattern.slice(offset, len(piece)):
            sys.exit(f"wrong bytes near offset {offset}")
        offset += len(piece)
    sender.join()
    if offset != total:
        sys.exit(f"only {offset} of {total} bytes came back")
    seconds = time.monotonic() - start
    print(f"{total} bytes there and back in {seconds:.2f} s, {total * 8 / seconds / 1e9:.2f} Gbit/s "
          "each way")


if __name__ == "__main__":
    main()
