# deepspace on processors: docker build -t deepspace . && docker run --rm -v "$PWD:/data" deepspace --help
# Another build of torch, as the one for processors alone or for your driver:
#   docker build --build-arg TORCH_INDEX=ADDRESS_OF_ITS_INDEX -t deepspace .
FROM python:3.11-slim-bookworm AS build

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/deepspace
ENV PATH=/opt/deepspace/bin:$PATH

# torch first and alone: another package could pull in gigabytes of CUDA; the constraints pin it
ARG TORCH_INDEX=""
WORKDIR /src
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt '.[wsi,spatial,leiden,viewer]'

FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="deepspace" \
      org.opencontainers.image.licenses="BSD-3-Clause"
COPY --from=build /opt/deepspace /opt/deepspace
ENV PATH=/opt/deepspace/bin:$PATH \
    DEEPSPACE_CACHE=/tmp/deepspace-cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba
RUN useradd --create-home --uid 1000 deepspace
USER 1000
WORKDIR /data
ENTRYPOINT ["deepspace"]
CMD ["--help"]
