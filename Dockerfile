# syntax=docker/dockerfile:1
#
#   docker build -t aqueduct .
#   docker run --rm -p 127.0.0.1:8080:8080 aqueduct        # config/quickstart.toml

FROM rust:1.94-bookworm AS build
WORKDIR /src
COPY . .
# Dependencies are in the cache of the mounts, so that an edit compiles this program alone.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin aqueduct && cp target/release/aqueduct /aqueduct

# The same Debian that it was linked against; it needs glibc and nothing else of it. Not distroless:
# a shell is worth its few megabytes where files are tailed and looked at.
FROM debian:bookworm-slim
# Certificates, for servers and collectors behind TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/aqueduct aqueduct \
    && install -d -o aqueduct -g aqueduct /var/lib/aqueduct /var/lib/aqueduct/data /data
COPY --from=build /aqueduct /usr/local/bin/aqueduct
COPY config /etc/aqueduct

USER 10001:10001
# Paths in a topology are relative to this: `data` is the volume.
WORKDIR /var/lib/aqueduct
VOLUME ["/var/lib/aqueduct/data"]
# Reachable from outside the container; publish it on 127.0.0.1, or give it a token.
ENV HTTP_LISTEN=0.0.0.0:8080 QUICKSTART_LISTEN=0.0.0.0:8080
EXPOSE 8080

ENV TOPOLOGY=/etc/aqueduct/quickstart.toml
# Asks the process itself, so no other client is needed.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD aqueduct status "$TOPOLOGY" --healthy
# A stop drains for up to 25 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["aqueduct"]
CMD ["run", "/etc/aqueduct/quickstart.toml"]
