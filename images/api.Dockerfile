# syntax=docker/dockerfile:1.7
# The front door. Build from the repository's root: docker build -f images/api.Dockerfile .
# Where the base comes from: a mirror of your own by --build-arg REGISTRY=mirror.example.com
ARG REGISTRY=docker.io
FROM ${REGISTRY}/library/python:3.11.14-slim-bookworm AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/torpor
COPY images/constraints.txt images/constraints.txt
# Dependencies before the source: a change of ours rebuilds the last layer only.
COPY pyproject.toml README.md LICENSE ./
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    for package in api eventing knative predictor steps torpor; do \
        mkdir "$package" && touch "$package/__init__.py"; done \
    && /opt/torpor/bin/pip install -c images/constraints.txt ".[api,s3,traces]"
COPY eventing eventing
COPY knative knative
COPY torpor torpor
COPY predictor predictor
COPY steps steps
COPY api api
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/torpor/bin/pip install --no-deps --force-reinstall .

FROM ${REGISTRY}/library/python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 torpor \
    && useradd --uid 10001 --gid torpor --no-create-home --home-dir /tmp torpor \
    && install -d -o torpor -g torpor /var/lib/torpor /var/lib/torpor/files
COPY --from=build /opt/torpor /opt/torpor
# The base has no bytecode of the standard library, and our user may write none: each start compiled it.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x "/(test|idlelib|lib2to3|site-packages)/" \
        "$(python -c "import sysconfig; print(sysconfig.get_path('stdlib'))")"
ENV PATH=/opt/torpor/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# Exec form: SIGTERM reaches the process, not a shell.
ENTRYPOINT ["python", "-m", "api"]
