# clickmask without torch: serving with what needs no weights. Built as `docker build -t clickmask .`
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 clickmask \
    && install --directory --owner clickmask --group clickmask /data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY backend backend
COPY adapters adapters
RUN pip install --no-cache-dir -c constraints.txt .

USER 1000
ENV CLICKMASK_HOME=/data
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import http.client, os, sys; \
asked = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('CLICKMASK_PORT') or 9090), timeout=2); \
asked.request('GET', '/health'); sys.exit(asked.getresponse().status != 200)"]
# Beyond loopback a request needs CLICKMASK_TOKEN, or comes from CLICKMASK_TRUSTED_NETWORKS.
ENTRYPOINT ["clickmask"]
CMD ["serve", "--host", "0.0.0.0"]
