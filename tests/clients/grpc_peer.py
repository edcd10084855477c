"""gRPC's own client and server (PyPI grpcio, on its C-core) around a mesh: what each of them sees, one JSON line each.

    grpc_peer.py serve ADDRESS                  says `ready`, then every call when it begins, and when it is cancelled
    grpc_peer.py call ADDRESS AUTHORITY CASE    one of CASES, and what came of it
"""

import json
import sys
import threading
from concurrent import futures

import grpc

# Longer than any test waits, so that nothing but the mesh or the peer ends a call.
LONG = 100
LIMITS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
EVERY_BYTE = bytes(range(256))
DETAILS = b"\x08\x09\x00\xff"
lock = threading.Lock()


def say(**what):
    with lock:
        print(json.dumps(what), flush=True)


def readable(metadata):
    return {key: value.hex() if isinstance(value, bytes) else value for key, value in metadata or ()}


# --- the server ---------------------------------------------------------------------------------------------------


def begin(method, context):
    # C-core's word for no deadline is the end of time.
    left = context.time_remaining()
    metadata = readable(context.invocation_metadata())
    say(call=method, metadata=metadata, seconds_left=left if left is not None and left < 1e9 else None)


def answer_metadata(context):
    context.send_initial_metadata((("x-first", "one"), ("x-first-bin", EVERY_BYTE)))
    context.set_trailing_metadata((("x-last", "two"), ("x-last-bin", EVERY_BYTE)))


def unary(request, context):
    begin("Unary", context)
    answer_metadata(context)
    return request


def down(request, context):
    begin("Down", context)
    for n in range(int(request)):
        yield str(n).encode()


def up(requests, context):
    begin("Up", context)
    return b",".join(requests)


def both(requests, context):
    begin("Both", context)
    for request in requests:
        yield request[::-1]


def endless(request, context):
    """One message, and then nothing until the call is over, which is said: also when it is over before we are asked for more."""
    begin("Endless", context)
    over = threading.Event()
    context.add_callback(lambda: (say(over="Endless"), over.set()))
    yield b"first"
    over.wait(LONG)


def fails(request, context):
    """After as many messages as are asked for: none is an answer of trailers alone."""
    begin("Fails", context)
    for n in range(int(request)):
        yield str(n).encode()
    context.set_trailing_metadata((("grpc-status-details-bin", DETAILS),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht genügend, 100 % sicher")


def serve(address):
    server = grpc.server(futures.ThreadPoolExecutor(8), options=LIMITS + [("grpc.so_reuseport", 0)])
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Endless": grpc.unary_stream_rpc_method_handler(endless),
        "Fails": grpc.unary_stream_rpc_method_handler(fails),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pay.Charges", methods),))
    server.add_insecure_port(address)
    server.start()
    say(ready=address)
    server.wait_for_termination()


# --- the client ---------------------------------------------------------------------------------------------------


def case_unary(channel):
    call = channel.unary_unary("/pay.Charges/Unary")
    metadata = (("x-ask", "zero"), ("x-ask-bin", EVERY_BYTE))
    answer, done = call.with_call(b"hello", timeout=LONG, metadata=metadata)
    say(
        answer=answer.decode(),
        first=readable(done.initial_metadata()),
        last=readable(done.trailing_metadata()),
        code=done.code().name,
    )


def case_down(channel):
    say(answers=[m.decode() for m in channel.unary_stream("/pay.Charges/Down")(b"300", timeout=LONG)])


def case_up(channel):
    say(answer=channel.stream_unary("/pay.Charges/Up")(iter([b"a", b"b", b"c"]), timeout=LONG).decode())


def case_both(channel):
    """Each message is sent when the answer to the one before is here: nothing on the way may wait for more."""
    may_send, answers = threading.Semaphore(1), []

    def requests():
        for word in (b"one", b"two", b"three"):
            may_send.acquire()
            yield word

    for answer in channel.stream_stream("/pay.Charges/Both")(requests(), timeout=LONG):
        answers.append(answer.decode())
        may_send.release()
    say(answers=answers)


def stay():
    """Keeps the connection, so that what the server sees is the end of the call; the test kills this process."""
    threading.Event().wait(LONG)


def case_cancel(channel):
    call = channel.unary_stream("/pay.Charges/Endless")(b"", timeout=None)
    first = next(call)
    call.cancel()
    say(first=first.decode(), code=call.code().name)
    stay()


def case_deadline(channel):
    call = channel.unary_stream("/pay.Charges/Endless")(b"", timeout=1.0)
    answers = []
    try:
        for answer in call:
            answers.append(answer.decode())
    except grpc.RpcError:
        pass
    say(answers=answers, code=call.code().name)
    stay()


def case_large(channel):
    message = EVERY_BYTE * (4 << 20 >> 8)
    answer = channel.unary_unary("/pay.Charges/Unary")(message, timeout=LONG)
    say(bytes=len(answer), same=answer == message)


def case_fails(channel):
    for number in (b"0", b"2"):
        call, answers = channel.unary_stream("/pay.Charges/Fails")(number, timeout=LONG), []
        try:
            for answer in call:
                answers.append(answer.decode())
        except grpc.RpcError:
            pass
        last = readable(call.trailing_metadata())
        say(answers=answers, code=call.code().name, details=call.details(), last=last)


def case_one(channel):
    """A call that may be refused."""
    try:
        say(answer=channel.unary_unary("/pay.Charges/Unary")(b"hello", timeout=LONG).decode(), number=0)
    except grpc.RpcError as error:
        say(number=error.code().value[0], details=error.details())


def call(address, authority, case):
    with grpc.insecure_channel(address, options=LIMITS + [("grpc.default_authority", authority)]) as channel:
        globals()[f"case_{case}"](channel)


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call(*sys.argv[2:])
