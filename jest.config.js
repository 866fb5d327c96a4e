export default {
  testEnvironment: "node",
  testMatch: ["<rootDir>/test/**/*.test.ts"],
  extensionsToTreatAsEsm: [".ts"],
  transform: {
    "\\.ts$": ["@swc/jest", { jsc: { target: "es2022", parser: { syntax: "typescript" } }, sourceMaps: "inline" }],
  },
  moduleNameMapper: {
    "^#gen/(.*)$": "<rootDir>/gen/$1.ts",
    // What generated files import of each other; packages have generated files too.
    "^((?:\\.\\./)+(?:google/rpc|config/core/v3|type/v3)/.*_pb)\\.js$": "$1.ts",
    "^(\\./(?:attribute_context|error_reason|api_key_service)_pb)\\.js$": "$1.ts",
  },
  globalSetup: "<rootDir>/test/support/global-setup.js",
  globalTeardown: "<rootDir>/test/support/global-teardown.js",
  coverageProvider: "v8",
  collectCoverageFrom: ["src/**/*.ts"],
  // It ends what hangs, and is no measure of speed: on a busy machine a test takes many times as long.
  testTimeout: 300_000,
  maxWorkers: 2,
  testSequencer: "<rootDir>/test/support/sequencer.js",
  // A worker keeps what the modules of each file leave behind: of two gigabytes, most of its time is garbage collection.
  workerIdleMemoryLimit: "800MB",
};
