"""An OTLP receiver made of the official protocol definitions: gRPC and HTTP at once. It prints its ports, then each span that it
gets, one JSON document a line, with what came with it.

otlp_receiver.py [ok|slow|full|garbage|gone|partial [FOLDER]]

With a folder of ca.pem, server.pem and server-key.pem it speaks TLS, and takes only clients with a certificate of that authority.
"""

import gzip
import json
import pathlib
import ssl
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

mode = sys.argv[1] if len(sys.argv) > 1 else "ok"
printing = threading.Lock()


def plain(value):
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


def attributes(all):
    return {each.key: plain(each.value) for each in all}


def say(document):
    with printing:
        print(json.dumps(document), flush=True)


def tell(via, request, came_with):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                say({
                    "via": via,
                    "came_with": came_with,
                    "resource": attributes(resource.resource.attributes),
                    "scope": scope.scope.name,
                    "schema": scope.schema_url,
                    "name": span.name,
                    "kind": span.kind,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "nanos": span.end_time_unix_nano - span.start_time_unix_nano,
                    "attributes": attributes(span.attributes),
                    "events": [{"name": e.name, "attributes": attributes(e.attributes)} for e in span.events],
                    "status": span.status.code,
                })


def answer(request):
    count = sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
    answer = pb.ExportTraceServiceResponse()
    if mode == "partial":
        answer.partial_success.rejected_spans = count
        answer.partial_success.error_message = "not these"
    return answer


class Grpc(service.TraceServiceServicer):
    def Export(self, request, context):
        if mode == "slow":
            time.sleep(600)
        if mode == "full":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        tell("grpc", request, dict(context.invocation_metadata()))
        return answer(request)


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        request = pb.ExportTraceServiceRequest.FromString(body)
        if mode == "slow":
            time.sleep(600)
        if mode == "gone":
            self.connection.close()
            return
        status, text = 200, answer(request).SerializeToString()
        if mode == "full":
            status, text = 429, b"full"
        if mode == "garbage":
            text = b"\xff" * (1 << 20)
        came_with = {name.lower(): value for name, value in self.headers.items()}
        tell("http", request, came_with | {"path": self.path})
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
service.add_TraceServiceServicer_to_server(Grpc(), server)
http = ThreadingHTTPServer(("127.0.0.1", 0), Http)
http.daemon_threads = True
if len(sys.argv) > 2:
    folder = pathlib.Path(sys.argv[2])
    ca, certificate, key = ((folder / name).read_bytes() for name in ["ca.pem", "server.pem", "server-key.pem"])
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "server.pem", folder / "server-key.pem")
    http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
say({"grpc": port, "http": http.server_address[1]})
http.serve_forever()
