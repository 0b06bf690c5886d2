"""Traces and metrics by OTLP, over HTTP: loaded only where an OTEL_* variable names an endpoint.

FastAPI measures. What is here sends it, without what may hold tokens and people, and without delaying a stop or filling
the log when the collector does not answer. The other OTEL_* variables are read by OpenTelemetry itself.
"""

import logging
import os
import time
from threading import Thread

from fastapi.telemetry import TelemetryConfig
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from src.core.logs import RareWarning

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
REDACTED = "REDACTED"  # as OpenTelemetry's conventions write it
_PRIVATE = ("url.query", "url.path")  # links have their token in the query; a path is whatever somebody sends


class Telemetry:
    """What the environment asks for: `config` is for FastAPI, whose own exporters would keep a stop waiting for as long
    as the collector does not answer."""

    def __init__(self, version: str) -> None:
        resource = _resource(version)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._meters = MeterProvider(_readers(), resource=resource, shutdown_on_exit=False)
        if has_endpoint("TRACES"):
            self._tracers.add_span_processor(Redaction())
            self._tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.config = TelemetryConfig(
            tracer_provider=self._tracers,
            meter_provider=self._meters,
            tracing=has_endpoint("TRACES"),
            metrics=has_endpoint("METRICS"),
            logs=False,  # they may hold the texts of exceptions, which quote rows; our own log says what is safe
            operation_spans=False,  # three more for each request, which tell little without those of the database
            auto_configure=False,
        )
        _quiet_libraries()

    def stop(self) -> None:
        """Send what is left, if the collector takes it within two seconds."""
        senders = [Thread(target=provider.shutdown, daemon=True) for provider in (self._tracers, self._meters)]
        for sender in senders:
            sender.start()
        deadline = time.monotonic() + STOP_SECONDS
        for sender in senders:
            sender.join(max(0.0, deadline - time.monotonic()))


class Redaction(SpanProcessor):
    """Replaces private attributes of each span as it starts, so that no exporter sees them."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        for name in _PRIVATE:
            if span.attributes and name in span.attributes:
                span.set_attribute(name, REDACTED)


class RareHandler(logging.Handler):
    """Logs what OpenTelemetry says once a minute. While the collector is away it says so of each span."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._warning = RareWarning(log)

    def emit(self, record: logging.LogRecord) -> None:
        self._warning.give(record.getMessage())


def has_endpoint(signal: str) -> bool:
    """Whether TRACES or METRICS are sent."""
    endpoints = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return os.environ.get(f"OTEL_{signal}_EXPORTER") != "none" and any(os.environ.get(name) for name in endpoints)


def _readers() -> list[PeriodicExportingMetricReader]:
    return [PeriodicExportingMetricReader(OTLPMetricExporter())] if has_endpoint("METRICS") else []


def _resource(version: str) -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before ours."""
    ours = Resource({SERVICE_NAME: "user-auth-service", SERVICE_VERSION: version})
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())


def _quiet_libraries() -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.handlers, theirs.propagate = [RareHandler()], False
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)  # it warns of each further attempt
