import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import {
  type ApiKeyService,
  KeyChangeKind,
  type WatchResponse,
  WatchResponseSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import type { Changes, WatchMessage } from "../../keys/changes.ts";
import { stopping } from "../errors.ts";

interface WatchParts {
  changes: Changes;
  /** The same for all processes that keep the same records, and for no others: 8 hexadecimal digits. */
  lineage: string;
}

const KINDS = {
  created: KeyChangeKind.CREATED,
  retiring: KeyChangeKind.RETIRING,
  revoked: KeyChangeKind.REVOKED,
  expired: KeyChangeKind.EXPIRED,
  updated: KeyChangeKind.UPDATED,
  removed: KeyChangeKind.REMOVED,
};

export function createWatch({ changes, lineage }: WatchParts): Pick<ServiceImpl<typeof ApiKeyService>, "watch"> {
  return {
    async *watch({ resumeToken }, { signal }) {
      const from = resumeToken === "" ? undefined : readToken(resumeToken, lineage);
      for await (const message of changes.watch(from, signal)) {
        yield responseOf(message, lineage);
      }
      if (signal.aborted) throw whyAborted(signal);
      throw stopping("This process stops. Go on at another with the resume token.");
    },
  };
}

/** The caller's deadline, or that it went away: how, is its own affair. */
function whyAborted({ reason }: AbortSignal): ConnectError {
  if (reason instanceof ConnectError && reason.code === Code.DeadlineExceeded) return reason;
  return new ConnectError("The caller went away.", Code.Canceled);
}

function responseOf(message: WatchMessage, lineage: string): WatchResponse {
  const resumeToken = writeToken(message.position, lineage);
  if (message.event === "change") {
    const { id, kind } = message.change;
    return create(WatchResponseSchema, {
      event: { case: "change", value: { keyId: id, kind: KINDS[kind] } },
      resumeToken,
    });
  }
  return create(WatchResponseSchema, {
    event: { case: message.event, value: { asOf: timestampFromMs(message.asOfMs) } },
    resumeToken,
  });
}

/** The database's own time, so that it means the same in every process; of no other database, whose time would be as good a number. */
function writeToken(position: bigint, lineage: string): string {
  return Buffer.from(`${lineage}${position.toString(16).padStart(16, "0")}`, "hex").toString("base64url");
}

function readToken(token: string, lineage: string): bigint | "unknown" {
  const hex = /^[\w-]{16}$/.test(token) ? Buffer.from(token, "base64url").toString("hex") : "";
  return hex.length === 24 && hex.startsWith(lineage) ? BigInt(`0x${hex.slice(8)}`) : "unknown";
}
