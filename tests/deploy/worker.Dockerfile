# A stock FastChat worker (tests/system/stock_worker.py) in a container.
ARG PYTHON_IMAGE=python:3.13.15-slim
FROM ${PYTHON_IMAGE}
RUN python3 -m venv /opt/worker
COPY constraints.txt /tmp/
RUN /opt/worker/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt fschat
COPY stock_worker.py /opt/worker/
