import { expect, test } from "@jest/globals";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { untilGauge } from "../support/history.ts";
import { startService } from "../support/service.ts";

test("options of MONGODB_URI that would break what is promised change nothing: the change stream follows, changes are kept, memory answers", async () => {
  const options = [
    ...[
      "readConcernLevel=local",
      "w=0",
      "journal=false",
      "wtimeoutMS=1",
      "readPreference=secondary",
      "maxStalenessSeconds=90",
    ],
    ...["maxPoolSize=1", "waitQueueTimeoutMS=1", "compressors=snappy", "retryWrites=false", "socketTimeoutMS=1"],
  ];
  const service = await startService({ env: { MONGODB_URI: `${process.env.TEST_MONGODB_URI}&${options.join("&")}` } });
  const client = service.client();
  const made = [await client.create({ scopes: ["read"] }), await service.client().create({ scopes: ["read"] })];
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 1);
  for (const { key } of made) expect((await client.verify({ key })).outcome).toBe(Outcome.VALID);
  const [left] = service.logs().match(/\{[^\n]*mongodb_options_left_out[^\n]*/) ?? [];
  expect(JSON.parse(left!).options).toEqual(options.map((option) => option.split("=")[0]));
  await service.stop();
});
