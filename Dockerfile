# deepspace on processors: docker build -t deepspace . && docker run --rm -v "$PWD:/data" deepspace --help
# For a GPU, replace the line that installs torch by the build for your driver.
FROM python:3.11-slim-bookworm AS build

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/deepspace
ENV PATH=/opt/deepspace/bin:$PATH

# torch first and alone: another package could pull in gigabytes of CUDA; the constraints pin it
WORKDIR /src
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu \
        --extra-index-url https://pypi.org/simple torch
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
USER deepspace
WORKDIR /data
ENTRYPOINT ["deepspace"]
CMD ["--help"]
