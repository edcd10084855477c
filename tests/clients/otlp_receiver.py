"""An OTLP receiver made of the official protocol definitions: gRPC and HTTP at once. It prints its ports, then each span,
metric and log record that it gets, one JSON document a line (`signal` says which), with what came with it.

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
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

mode = sys.argv[1] if len(sys.argv) > 1 else "ok"
printing = threading.Lock()


def plain(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes(all):
    return {each.key: plain(each.value) for each in all}


def say(document):
    with printing:
        print(json.dumps(document), flush=True)


def tell_spans(via, request, came_with):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                say({
                    "signal": "span",
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


def point(kind, point):
    said = {"labels": attributes(point.attributes), "start": point.start_time_unix_nano, "time": point.time_unix_nano}
    if kind == "histogram":
        return said | {
            "count": point.count,
            "sum": point.sum,
            "bounds": list(point.explicit_bounds),
            "counts": list(point.bucket_counts),
            "exemplars": [{"trace": e.trace_id.hex(), "value": e.as_double} for e in point.exemplars],
        }
    return said | {"value": getattr(point, point.WhichOneof("value"))}


def tell_metrics(via, request, came_with):
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            metrics = []
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                metrics.append({
                    "name": metric.name,
                    "description": metric.description,
                    "kind": kind,
                    "temporality": getattr(data, "aggregation_temporality", 0),
                    "monotonic": getattr(data, "is_monotonic", False),
                    "points": [point(kind, each) for each in data.data_points],
                })
            say({
                "signal": "metrics",
                "via": via,
                "came_with": came_with,
                "resource": attributes(resource.resource.attributes),
                "scope": scope.scope.name,
                "metrics": metrics,
            })


def tell_logs(via, request, came_with):
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                say({
                    "signal": "log",
                    "via": via,
                    "came_with": came_with,
                    "resource": attributes(resource.resource.attributes),
                    "scope": scope.scope.name,
                    "time": record.time_unix_nano,
                    "observed": record.observed_time_unix_nano,
                    "severity": record.severity_number,
                    "severity_text": record.severity_text,
                    "event": record.event_name,
                    "body": plain(record.body),
                    "trace": record.trace_id.hex(),
                    "span": record.span_id.hex(),
                    "flags": record.flags,
                    "attributes": attributes(record.attributes),
                })


def trace_answer(request):
    answer = pb.ExportTraceServiceResponse()
    if mode == "partial":
        answer.partial_success.rejected_spans = sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
        answer.partial_success.error_message = "not these"
    return answer


def metrics_answer(request):
    answer = metrics_pb.ExportMetricsServiceResponse()
    if mode == "partial":
        answer.partial_success.rejected_data_points = 1
        answer.partial_success.error_message = "not this one"
    return answer


def logs_answer(request):
    answer = logs_pb.ExportLogsServiceResponse()
    if mode == "partial":
        records = sum(len(s.log_records) for r in request.resource_logs for s in r.scope_logs)
        answer.partial_success.rejected_log_records = records
        answer.partial_success.error_message = "not these"
    return answer


def export(tell, answer):
    def handle(self, request, context):
        if mode == "slow":
            time.sleep(600)
        if mode == "full":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        tell("grpc", request, dict(context.invocation_metadata()))
        return answer(request)

    return handle


class Traces(service.TraceServiceServicer):
    Export = export(tell_spans, trace_answer)


class Metrics(metrics_service.MetricsServiceServicer):
    Export = export(tell_metrics, metrics_answer)


class Logs(logs_service.LogsServiceServicer):
    Export = export(tell_logs, logs_answer)


SIGNALS = {
    "traces": (pb.ExportTraceServiceRequest, tell_spans, trace_answer),
    "metrics": (metrics_pb.ExportMetricsServiceRequest, tell_metrics, metrics_answer),
    "logs": (logs_pb.ExportLogsServiceRequest, tell_logs, logs_answer),
}


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        # Who is asked at a path of his own is asked for spans.
        kind, tell, answer = SIGNALS.get(self.path.rsplit("/", 1)[-1], SIGNALS["traces"])
        request = kind.FromString(body)
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
service.add_TraceServiceServicer_to_server(Traces(), server)
metrics_service.add_MetricsServiceServicer_to_server(Metrics(), server)
logs_service.add_LogsServiceServicer_to_server(Logs(), server)
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
