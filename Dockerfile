# An image that runs every tool but export and the converters; the context is a clone of the
# repository. docs/deploy.md has the commands. For NVIDIA GPUs:
#
#   docker build --tag fcvit-mm:cuda --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
ARG BASE=python:3.12-slim
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PATH=/opt/fcvit/bin:$PATH

# OpenCV needs libgl1 and libglib2.0; a CUDA base has no Python.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && { command -v python3 || apt-get install --yes --no-install-recommends python3 python3-venv; } \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/fcvit \
    && useradd --create-home --uid 10001 fcvit \
    && chmod 1777 /home/fcvit

# A layer of its own: PyTorch is downloaded once, not after every change of the package.
# hadolint ignore=DL3013
RUN pip install torch torchvision

COPY . /src
RUN pip install '/src[openmmlab,app,hub,track]'

# with --user, too, whoever that is
ENV HOME=/home/fcvit \
    USER=fcvit

USER 10001
WORKDIR /home/fcvit

ENTRYPOINT ["python", "-m", "fcvit_mm"]
CMD ["demo"]
