# The controller's image: lrp-controller, without BCC, for any user and a root file system that nobody can write to.
# Built as the agent's is (agent.Dockerfile), from the same base, lock and wheel.
ARG BASE=docker.io/library/debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

FROM ${BASE} AS root
ENV DEBIAN_FRONTEND=noninteractive
RUN --mount=type=secret,id=apt-sources,target=/etc/apt/sources.list.d/debian.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99secret \
    apt-get update -qq \
    && apt-get upgrade -qq -y --no-install-recommends \
    && apt-get install -qq -y --no-install-recommends python3
COPY trim.sh /
RUN sh /trim.sh /root-of-image

FROM ${BASE} AS python
ENV DEBIAN_FRONTEND=noninteractive
RUN --mount=type=secret,id=apt-sources,target=/etc/apt/sources.list.d/debian.sources \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99secret \
    apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-pip python3-venv
ENV PIP_PYTHON=/opt/lrp-operator/bin/python
COPY requirements.lock /
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
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/
USER 65532:65532
LABEL org.opencontainers.image.title="lrp-controller" \
      org.opencontainers.image.description="Checks CiliumLocalRedirectPolicies, and tells where they work" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
ENTRYPOINT ["lrp-controller"]
