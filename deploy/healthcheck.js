// The image's HEALTHCHECK: exit code 0 when the process lives. Not whether it is ready: in an outage of MongoDB a restart would only throw
// away the keys that it remembers. Without an operators' port, whether the public one takes connections.
import { connect } from "node:net";

const { LATCHKEY_OPS_LISTEN = "127.0.0.1:9090", LATCHKEY_LISTEN = "127.0.0.1:8080" } = process.env;

/** Where an address that is listened on is reached from the same machine. */
const reached = (address) => address.replace(/^0\.0\.0\.0:/, "127.0.0.1:").replace(/^\[::\]:/, "[::1]:");

async function lives() {
  if (LATCHKEY_OPS_LISTEN !== "off") return (await fetch(`http://${reached(LATCHKEY_OPS_LISTEN)}/livez`)).ok;
  const { hostname, port } = new URL(`http://${reached(LATCHKEY_LISTEN)}`);
  const socket = connect({ host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || 80) });
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  socket.destroy();
  return true;
}

const alive = await lives().catch(() => false);
process.exit(alive ? 0 : 1);
