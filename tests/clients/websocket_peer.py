"""PyPI websockets, client and server, around a mesh: what each of them sees, one JSON line each.

    websocket_peer.py serve ADDRESS                  says `ready`, then every handshake and every close
    websocket_peer.py call ADDRESS AUTHORITY CASE    one of the cases below, and what came of it
"""

import json
import socket
import sys
import threading

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as server_on

LONG = 50
MEBIBYTE = bytes(range(256)) * (1 << 12)
lock = threading.Lock()


def say(**what):
    with lock:
        print(json.dumps(what), flush=True)


def serve(address):
    def asked(_, request):
        say(path=request.path, certificate=request.headers.get("X-Forwarded-Client-Cert"))

    def talk(connection):
        try:
            for message in connection:
                if message == "close":
                    connection.close(4001, "as you wish")
                elif message == "ping":
                    connection.send(str(connection.ping(b"are you there").wait(LONG)))
                else:
                    connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            say(closed=connection.close_code, reason=connection.close_reason)

    host, port = address.rsplit(":", 1)
    with server_on(talk, host, int(port), process_request=asked, max_size=None, ping_interval=None) as server:
        say(ready=address)
        server.serve_forever()


def case_echo(connection):
    text = "ü" * (len(MEBIBYTE) // 2)
    connection.send(text)
    same_text = connection.recv(LONG) == text
    connection.send(MEBIBYTE)
    same_bytes = connection.recv(LONG) == MEBIBYTE
    # A message of many frames stays one.
    connection.send(MEBIBYTE[n : n + 65536] for n in range(0, len(MEBIBYTE), 65536))
    say(text=same_text, bytes=same_bytes, fragments=connection.recv(LONG) == MEBIBYTE)


def case_ping(connection):
    answered = connection.ping(b"here").wait(LONG)
    connection.send("ping")
    say(answered=answered, answers=connection.recv(LONG))


def case_close(connection):
    connection.close(4002, "enough")
    say(closed=True)


def case_closed(connection):
    connection.send("close")
    try:
        connection.recv(LONG)
    except ConnectionClosed as closed:
        say(code=closed.rcvd.code, reason=closed.rcvd.reason)


def call(address, authority, case):
    """`case` is the name of one above, or a path that may be refused."""
    host, port = address.rsplit(":", 1)
    path = case if case.startswith("/") else "/chat"
    carrier = socket.create_connection((host, int(port)), LONG)
    try:
        with connect(f"ws://{authority}{path}", sock=carrier, proxy=None, max_size=None, ping_interval=None) as opened:
            if case == path:
                say(status=101)
            else:
                globals()[f"case_{case}"](opened)
    except InvalidStatus as refused:
        say(status=refused.response.status_code)


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call(*sys.argv[2:])
