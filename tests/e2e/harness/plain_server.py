#!/usr/bin/python3
"""An ordinary server on kernel sockets that knows nothing of us: what a NAT stands in front of.

Port 7: echoes, TCP and UDP. Port 80: HTTP/1.1 with keep-alive; GET /bytes/N, and /name;
/drain and /undrain change what /healthz says.
"""

import asyncio
import os
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness.pattern import Pattern  # noqa: E402

PATTERN = Pattern("plain server")


async def echo(reader, writer):
    try:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


class UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


def http(name):
    state = {"draining": False}

    def page(path):
        if path in ("/drain", "/undrain"):
            state["draining"] = path == "/drain"
        if path == "/healthz" and state["draining"]:
            return b"503 Service Unavailable", b"draining\n"
        return b"200 OK", name.encode()

    async def serve(reader, writer):
        try:
            while line := await reader.readline():
                path = line.split()[1].decode()
                while (await reader.readline()).strip():
                    pass
                if path.startswith("/bytes/"):
                    total = int(path[7:])
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
                    for chunk in PATTERN.chunks(total):
                        writer.write(chunk)
                        await writer.drain()
                else:
                    status, body = page(path)
                    writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                                 + body)
                    await writer.drain()
        except OSError:
            pass
        writer.close()
    return serve


async def main():
    name = sys.argv[1]
    loop = asyncio.get_running_loop()
    serve = http(name)
    for host in ("0.0.0.0", "::"):
        await asyncio.start_server(echo, host, 7)
        await asyncio.start_server(serve, host, 80)
        udp = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        if ":" in host:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp.bind((host, 7))
        await loop.create_datagram_endpoint(UdpEcho, sock=udp)
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
