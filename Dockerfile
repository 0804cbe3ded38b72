# dcdctl on a processor, with its service: docker build -t dcdctl .
# docs/deploy.md says what to mount, and how to build it smaller.
FROM python:3.11-slim AS build

# The packages of the service. The index contains the model; "open-clip" and "timm" are for models that need them.
ARG EXTRAS=serve,index,postgres
# URL of an index with builds of torch for processors only. Without it, torch comes with the libraries of CUDA, which are several GB.
ARG TORCH_INDEX=
ARG TORCH=2.13.*
ARG TORCHVISION=0.28.*

WORKDIR /src
RUN python -m venv /opt/dcdctl
ENV PATH=/opt/dcdctl/bin:$PATH
# torch comes first and changes rarely: a change of dcdctl does not download it again.
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch==$TORCH" "torchvision==$TORCHVISION"; \
    fi
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY data_manifests data_manifests
COPY dcdctl dcdctl
# constraints.txt has the versions.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim
# A fixed number, so that mounted folders can belong to it.
RUN useradd --uid 10001 --create-home dcdctl
COPY --from=build /opt/dcdctl /opt/dcdctl
ENV PATH=/opt/dcdctl/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/dcdctl
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["dcdctl"]
# The host is that of the container: what can reach it is decided by the ports that are published.
CMD ["serve", "/data/index", "--host", "0.0.0.0", "--set", "log_format=json"]
