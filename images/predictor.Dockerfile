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
# vLLM's image has no bytecode (vllm-project/vllm#55422), and our user may write none: each start compiled 7,000
# modules. Files that are templates or of another Python do not compile, and are not imported either.
RUN python3 -c "import compileall as c, importlib.util as u, os, py_compile, sysconfig as s; \
        how = py_compile.PycInvalidationMode.UNCHECKED_HASH; \
        folders = {s.get_path(n) for n in ('stdlib', 'purelib', 'platlib')}; \
        [c.compile_dir(each, quiet=2, workers=0, invalidation_mode=how) for each in folders]; \
        made = [u.cache_from_source(u.find_spec(n).origin) for n in ('vllm', 'torch', 'transformers', 'json')]; \
        assert all(map(os.path.exists, made)), made"
# vLLM starts a second interpreter to learn what the model's class can do, and keeps the answers where a new pod has
# nothing: they are made here (on CPU: 7 s of CPU less at each start). What needs a driver to be imported is asked then.
RUN python3 -m predictor.engine.vllm.model_infos || echo "none: each start asks a second interpreter"
# torch asks for the user's name; everything that is written goes to mounted volumes.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=torpor LOGNAME=torpor
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
# Alive, not ready: loading may take ten minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD \
    ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python3", "-m", "predictor"]
