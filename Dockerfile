# Two stages: what builds, and what runs. The second has no shell, no package manager and no user but its own.
#
#   docker build -t portcullis .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges \
#     -v ./policies:/policies:ro -v portcullis-data:/data -p 8443:8443 portcullis
#
# In the policies `accept.listen` is then "0.0.0.0:8443"; `prove.directory = "../data/log"` lies on the volume, which a new one
# inherits from the image with its owner, 65532. `[admin] listen = "127.0.0.1:9443"` is what HEALTHCHECK asks: without it the
# container is never healthy.

FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Linked whole (fat LTO): minutes once, for a sixth of every request's CPU.
RUN cargo build --profile max --locked --bin portcullis && strip target/max/portcullis
# Pinned and held to its hash; the gateway checks the same hash again before it loads the library.
RUN scripts/onnxruntime /runtime/libonnxruntime.so
RUN mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/max/portcullis /usr/bin/portcullis
COPY --from=build /runtime/libonnxruntime.so /usr/bin/libonnxruntime.so
# A new volume here belongs to whom its folder belongs to, and nobody else may read what is in it.
COPY --from=build --chown=65532:65532 --chmod=0700 /data /data
USER nonroot
EXPOSE 8443
# The program asks its own admin listener, so that no shell is needed.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/usr/bin/portcullis", "health", "127.0.0.1:9443"]
ENTRYPOINT ["/usr/bin/portcullis"]
CMD ["serve", "--policies", "/policies"]
