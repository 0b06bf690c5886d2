FROM python:3.13-slim AS build
# Without a pip of its own, the environment that is copied below holds nothing but what the service imports.
RUN python -m venv --without-pip /venv
COPY requirements.txt .
# Wheels only: a build from source would run code of the package, and needs a compiler that is not here.
RUN pip --python /venv install --disable-pip-version-check --no-cache-dir \
        --require-hashes --only-binary :all: -r requirements.txt


FROM python:3.13-slim
ENV PATH="/venv/bin:$PATH" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=build /venv /venv
COPY alembic.ini .
COPY alembic alembic
COPY src src
# All of /app but data belongs to root, so the service cannot change its own code. It is compiled now because it could
# not write the bytecode later, and made readable for the case that it was checked out under a strict umask.
RUN chmod -R a+rX . \
    && python -m compileall -q alembic src \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin service \
    && install --directory --owner service --group service --mode 700 data

# By number, since Kubernetes (`runAsNonRoot`) cannot tell from a name that it is not root.
USER 10001:10001
# The SQLite file of the default DATABASE_URL. A folder mounted here must be writable for uid 10001.
VOLUME /app/data
EXPOSE 8000

# Whether the process answers. Not /health/ready: whatever restarts unhealthy containers would do so while the database
# is away, which mends nothing. The empty ProxyHandler keeps HTTP_PROXY out of it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", \
         "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/health/live')"]

# Requests under way get 2 seconds after SIGTERM. Without a limit, one slow client delays the stop until it is a kill.
CMD ["uvicorn", "src.api.app:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "2"]
