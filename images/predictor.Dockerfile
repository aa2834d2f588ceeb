# syntax=docker/dockerfile:1.7
# The predictor on NVIDIA GPUs, on vLLM's own image (CUDA, torch and vLLM as vLLM tested them).
# Build from the repository's root: docker build -f images/predictor.Dockerfile .
# Where the base comes from: a mirror of your own by --build-arg REGISTRY=mirror.example.com
ARG REGISTRY=docker.io
ARG VLLM_VERSION=v0.32.0
FROM ${REGISTRY}/vllm/vllm-openai:${VLLM_VERSION}
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY eventing eventing
COPY knative knative
COPY torpor torpor
COPY predictor predictor
COPY steps steps
COPY api api
# What the base image has stays as it is: its versions are the constraints of what we add.
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip freeze --exclude-editable > /tmp/base.txt \
    && python3 -m pip install --no-cache-dir --disable-pip-version-check \
        -c /tmp/base.txt ".[predictor,traces]" \
    && rm -rf /tmp/base.txt /src/* \
    && groupadd --gid 10001 torpor \
    && useradd --uid 10001 --gid torpor --no-create-home --home-dir /tmp torpor
# torch asks for the user's name; everything that is written goes to mounted volumes.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=torpor LOGNAME=torpor
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
# Alive, not ready: loading may take ten minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD \
    ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python3", "-m", "predictor"]
