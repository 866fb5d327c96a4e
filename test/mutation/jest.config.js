import base from "../../jest.config.js";

const { globalSetup: _, globalTeardown: __, ...rest } = base;

/** Some unit tests alone, which need no database. */
export default {
  ...rest,
  rootDir: "../..",
  setupFiles: ["<rootDir>/test/mutation/setup.js"],
  testMatch: process.env.MUTATION_TESTS.split(",").map((name) => `<rootDir>/test/unit/${name}.test.ts`),
  maxWorkers: 1,
  testTimeout: 5_000,
};
