# The server, and every other command of `imqtt`. Build it in the root of the checkout: docker build -t imqtt:0.1 .
#
# The image contains no secret: passwords are mounted as files (IMQTT_BROKER_PASSWORD_FILE and others) when it runs.

# The tests run on 3.11; newer versions should work too.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY imqtt imqtt
COPY deploy/mosquitto deploy/mosquitto
# An environment without pip: the second stage copies only this, and none of the build tools.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/imqtt \
    && pip --python /opt/imqtt/bin/python install --no-cache-dir "$(echo /wheels/imqtt_server-*.whl)[scale]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/imqtt --create-home --shell /usr/sbin/nologin imqtt
COPY --from=build /opt/imqtt /opt/imqtt
# The health page is only for this container; if an orchestrator asks from outside, set 0.0.0.0:8090.
ENV PATH=/opt/imqtt/bin:$PATH \
    IMQTT_HEALTH=127.0.0.1:8090
USER 10001
# Keep this as a volume with the default store.
WORKDIR /var/lib/imqtt
STOPSIGNAL SIGTERM
# Without the proxies that the environment may name: the page is on this machine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://' + os.environ['IMQTT_HEALTH'], timeout=4)"]
ENTRYPOINT ["imqtt"]
CMD ["serve"]
