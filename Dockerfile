# Debian, not Alpine: argon2 ships a build for glibc that needs no compiler.
ARG BASE=node:24-bookworm-slim

# Packages for development stay in this stage; the image gets only what it builds.
FROM ${BASE} AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
COPY test/runtime test/runtime
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY gen gen
COPY src src
RUN npm run build

FROM ${BASE} AS modules
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --omit=optional --ignore-scripts --no-audit --no-fund

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Latchkey" \
  org.opencontainers.image.description="API keys on MongoDB: one active key per user, verified over gRPC, gRPC-Web and Connect." \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"
# The two of malloc keep what reads of records leave behind from staying in the process: a fifth less memory a key.
ENV MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072
# Off loopback it starts only with a certificate (LATCHKEY_TLS_CERT_FILE, LATCHKEY_TLS_KEY_FILE), or with LATCHKEY_PLAINTEXT=yes
# where something else encrypts: that is for whoever runs it to say. The operators' port is where Kubernetes and Prometheus reach it;
# publish it to no network that strangers are on.
ENV NODE_ENV=production LATCHKEY_LISTEN=0.0.0.0:8080 LATCHKEY_OPS_LISTEN=0.0.0.0:9090
WORKDIR /app
COPY package.json LICENSE ./
COPY --from=modules /app/node_modules node_modules
COPY --from=build /app/dist dist
COPY deploy/healthcheck.js deploy/healthcheck.js
USER node
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["node", "deploy/healthcheck.js"]
# Exec form: node is process 1 and gets the signals.
ENTRYPOINT ["node", "dist/src/cli/main.js"]
CMD ["serve"]
