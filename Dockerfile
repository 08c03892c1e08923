# Two stages: the compiler stays behind in the first.
#
#   docker build -t lsb .
#   docker run --rm -v "$PWD/my-model:/model:ro" -p 127.0.0.1:8000:8000 lsb serve /model --host 0.0.0.0

FROM python:3.11-slim AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ cmake ninja-build \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY native native
COPY src src
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[serve]"

FROM python:3.11-slim
RUN --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels "loop-singular-bit[serve]" \
    && useradd --create-home --uid 10001 lsb
USER lsb
WORKDIR /home/lsb
EXPOSE 8000
# Meant for `serve` on its default port; it says nothing about the other commands.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["lsb"]
CMD ["--help"]
