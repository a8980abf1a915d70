# The clone with the GPU stack of requirements.lock:
#   docker build -t alliance .
#   docker run --gpus all --shm-size 8g -v "$PWD/data:/data" -v "$PWD/runs:/alliance/runs" alliance launch/pretrain.py --help
# CUDA comes with torch's packages; the host needs NVIDIA's driver and container toolkit. Without --gpus it runs on CPUs.
FROM python:3.11-slim-bookworm

# A compiler for torch.compile and for packages without a wheel; libexpat for rasterio's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential libexpat1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /alliance
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps -e .
ENTRYPOINT ["python"]
CMD ["launch/pretrain.py", "--help"]
