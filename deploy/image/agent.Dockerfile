# The agent's image: lrp-agent and lrpctl, with Debian's BCC, which compiles the programs on the node.
#
# `root` is Debian with Python and BCC, less what no agent ever runs; `python` is a virtual environment of the
# locked dependencies and the project's wheel. The image is these two on nothing, because what is deleted above a base
# is pulled all the same. `make image` prepares the context and builds it.
#
# The secrets are the settings of a machine that reaches Debian and PyPI in a way of its own; most give none.
#
# The release with BCC 0.26, which every test and the README's table of kernels ran with. Tags with a date don't move.
ARG BASE=docker.io/library/debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

FROM ${BASE} AS packages
ENV DEBIAN_FRONTEND=noninteractive
RUN --mount=type=secret,id=apt-sources,target=/etc/apt/sources.list.d/debian.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99secret \
    apt-get update -qq \
    && apt-get upgrade -qq -y --no-install-recommends \
    && apt-get install -qq -y --no-install-recommends python3 python3-bpfcc

# LLVM is linked to libxml2, for the manifests of Windows programs, and that to ICU, whose 31 MB of tables nobody here
# reads. A library with the one symbol that is linked to takes their place: ICU finds no table in it, and says so.
FROM packages AS tables
RUN --mount=type=secret,id=apt-sources,target=/etc/apt/sources.list.d/debian.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99secret \
    apt-get install -qq -y --no-install-recommends gcc libc6-dev
RUN set -eu; library=$(ls /usr/lib/*-linux-gnu/libicudata.so.*.*); name=$(basename "${library%.*}"); \
    mkdir -p "/tables/${library%/*}"; \
    echo "const short icudt${name##*.}_dat[32];" > empty.c; \
    gcc empty.c -shared -nostdlib -s -Wl,-soname,"$name" -o "/tables/$library"

FROM packages AS root
COPY --from=tables /tables/ /
COPY trim.sh /
RUN sh /trim.sh /root-of-image

FROM ${BASE} AS python
ENV DEBIAN_FRONTEND=noninteractive
RUN --mount=type=secret,id=apt-sources,target=/etc/apt/sources.list.d/debian.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99secret \
    apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-pip python3-venv
ENV PIP_PYTHON=/opt/lrp-operator/bin/python
COPY requirements.lock /
# BCC is the distribution's; no other of its Python packages is in the image. What nobody imports is not compiled.
RUN --mount=type=secret,id=pip-conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --system-site-packages --without-pip /opt/lrp-operator \
    && pip install -q --no-cache-dir --no-compile --require-hashes -r /requirements.lock \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -x '/kubernetes/(aio|client/api)/' /opt/lrp-operator
COPY lrp_operator-*.whl /
RUN pip install -q --no-compile --no-index --no-deps /lrp_operator-*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/lrp-operator/lib/python3*/*/lrp_operator

FROM scratch
COPY --from=root /root-of-image/ /
COPY --from=python /opt/lrp-operator/ /opt/lrp-operator/
ENV PATH=/opt/lrp-operator/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="lrp-agent" \
      org.opencontainers.image.description="Redirects a node's traffic as CiliumLocalRedirectPolicies say" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
ENTRYPOINT ["lrp-agent"]
