"""A collector of traces and metrics, as OTLP over HTTP sends them, on a loopback port."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

TRACES, METRICS = "/v1/traces", "/v1/metrics"


class Collector:
    """Keeps the bodies of all that it is sent, and answers with `status` while `gate` is set."""

    def __init__(self) -> None:
        self.intake: list[tuple[str, bytes]] = []
        self.gate = Event()
        self.gate.set()
        self.status = 200
        self.url = ""

    @property
    def paths(self) -> set[str]:
        return {path for path, _ in self.intake}

    @property
    def everything(self) -> str:
        return b"".join(body for _, body in self.intake).decode("latin-1")

    @property
    def traced(self) -> list[ResourceSpans]:
        requests = map(ExportTraceServiceRequest.FromString, self._bodies(TRACES))
        return [each for request in requests for each in request.resource_spans]

    @property
    def spans(self) -> list[Span]:
        return [span for traced in self.traced for scope in traced.scope_spans for span in scope.spans]

    @property
    def metrics(self) -> set[str]:
        requests = map(ExportMetricsServiceRequest.FromString, self._bodies(METRICS))
        measured = [each for request in requests for each in request.resource_metrics]
        return {metric.name for each in measured for scope in each.scope_metrics for metric in scope.metrics}

    def _bodies(self, path: str) -> Iterator[bytes]:
        return (body for sent_to, body in self.intake if sent_to == path)


def values_of(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in attributes}


@contextmanager
def run_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.intake.append((self.path, body))
            collector.gate.wait()
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the standard library
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.gate.set()  # or those who wait for an answer would keep the server open
            server.shutdown()
            thread.join()
