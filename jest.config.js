export default {
  testEnvironment: "node",
  testMatch: ["<rootDir>/test/**/*.test.ts"],
  extensionsToTreatAsEsm: [".ts"],
  transform: {
    "\\.ts$": ["@swc/jest", { jsc: { target: "es2022", parser: { syntax: "typescript" } }, sourceMaps: "inline" }],
  },
  moduleNameMapper: {
    "^#gen/(.*)$": "<rootDir>/gen/$1.ts",
    "^\\./(error_reason_pb)\\.js$": "<rootDir>/gen/latchkey/v1/$1.ts",
  },
  globalSetup: "<rootDir>/test/support/global-setup.js",
  globalTeardown: "<rootDir>/test/support/global-teardown.js",
  coverageProvider: "v8",
  collectCoverageFrom: ["src/**/*.ts"],
  testTimeout: 30_000,
  maxWorkers: 2,
};
