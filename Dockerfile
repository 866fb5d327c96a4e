# Debian, not Alpine: argon2 ships a build for glibc that needs no compiler.
FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
COPY test/runtime test/runtime
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY gen gen
COPY src src
RUN npm run build && npm prune --omit=dev --ignore-scripts --no-audit --no-fund

FROM node:24-bookworm-slim
# The two of malloc keep what reads of records leave behind from staying in the process: a fifth less memory a key.
ENV MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072
# Off loopback it starts only with a certificate (LATCHKEY_TLS_CERT_FILE, LATCHKEY_TLS_KEY_FILE), or with LATCHKEY_PLAINTEXT=yes
# where something else encrypts: that is for whoever runs it to say.
ENV NODE_ENV=production LATCHKEY_LISTEN=0.0.0.0:8080 LATCHKEY_OPS_LISTEN=127.0.0.1:9090
WORKDIR /app
COPY --from=build /app/package.json ./
COPY --from=build /app/node_modules node_modules
COPY --from=build /app/dist dist
USER node
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
  CMD ["node", "-e", "fetch('http://' + process.env.LATCHKEY_OPS_LISTEN + '/readyz').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# Exec form: node is process 1 and gets the signals.
ENTRYPOINT ["node", "dist/src/cli.js"]
CMD ["serve"]
