# The server, and every other command of `imqtt`. Built from the top of the checkout: docker build -t imqtt:0.1 .
#
# No secret is ever part of it: passwords come in files (IMQTT_BROKER_PASSWORD_FILE and its like) when it runs.

# 3.11 is what the tests run on; newer ones are likely to do.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY imqtt imqtt
COPY deploy/mosquitto deploy/mosquitto
# An environment without pip: the second stage takes it as it is, and nothing of this one's tools.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/imqtt \
    && pip --python /opt/imqtt/bin/python install --no-cache-dir "$(echo /wheels/imqtt_server-*.whl)[scale]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/imqtt --create-home --shell /usr/sbin/nologin imqtt
COPY --from=build /opt/imqtt /opt/imqtt
# The health page is for this container alone; an orchestrator that asks from outside sets 0.0.0.0:8090.
ENV PATH=/opt/imqtt/bin:$PATH \
    IMQTT_HEALTH=127.0.0.1:8090
USER 10001
# With the default store, the volume to keep.
WORKDIR /var/lib/imqtt
STOPSIGNAL SIGTERM
# Past the proxies that an environment may name: the page is on this machine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://' + os.environ['IMQTT_HEALTH'], timeout=4)"]
ENTRYPOINT ["imqtt"]
CMD ["serve"]
