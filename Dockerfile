# One image for either end of a federation; without EXTRAS it is the device agent's, which has none of a server's packages:
#   docker build -t diastole-agent .
#   docker build -t diastole-coordinator --build-arg EXTRAS=coordinator,simulation .

FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11.13-slim-bookworm

# On Linux the default index's torch carries CUDA: gigabytes that a device without a GPU never uses. For a GPU, pass the
# PyTorch index of its CUDA version instead.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# torch first and alone: its layer, by far the largest, is then rebuilt only when a version changes. --no-deps, so that
# only torch comes from that index and everything else from the default one. Its own tests and C++ headers, 145 MB, are of
# no use here.
RUN --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" -c /tmp/constraints.txt torch \
    && rm -r /usr/local/lib/python3.11/site-packages/torch/test /usr/local/lib/python3.11/site-packages/torch/include

ARG EXTRAS=enroll
RUN --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /dist/*.whl)${EXTRAS:+[$EXTRAS]}"

# Nothing here needs root. New volumes take their owner from the folders below. An agent's state and cache:
#   docker run -v agent:/state diastole-agent join HOST:PORT --state /state/agent ...
RUN useradd --create-home --uid 10001 diastole && install -d -o diastole -g diastole /state /shards /tokens /metrics
USER diastole
WORKDIR /home/diastole

# Flower reports usage unless told not to. OpenMP counts the host's cores, not the container's share: threads beyond that
# share only spin and are throttled, so there is one unless a service says otherwise, and it spins briefly.
# Plans that were measured go to the volume too.
ENV FLWR_TELEMETRY_ENABLED=0 \
    XDG_CACHE_HOME=/state/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    GOMP_SPINCOUNT=1000 \
    OMP_NUM_THREADS=1

ENTRYPOINT ["diastole"]
