import { createFakeStore } from "../support/fake-store.ts";
import { keyStoreSuite } from "../support/key-store-suite.ts";

const parts = { asked: async () => {}, nowMs: () => Date.now(), laterMs: 1 };
keyStoreSuite(() => createFakeStore({ records: new Map(), trail: [], ...parts }));
