#!/bin/sh
# argon2 (npm) 0.45.1 beside argon2-cffi 25.1.0 (libargon2): a hash that the one wrote, the other can't read.
#
# Seen: since 0.45 the npm package writes the parameters of a PHC string sorted by name, `$m=…,p=…,t=…$`. libargon2's
#   reader, which argon2-cffi uses, insists on `m,t,p` and answers with a decoding error, though digest, salt and all
#   parameters are right: with the same three parameters in its order it verifies.
# Most would guess: strings of one format ($argon2id$v=19$…) can be read by every library of it, as those of 0.44 were.
# Why it matters: credentials that are stored by a service in Node are locked in: whoever reads them by libargon2 (Python,
#   PHP, C) refuses every password, and tells it as a damaged hash.
#
# Needs npm and python3 with pip (the Node that runs argon2 comes from npm). Prints what it saw; exits 1 when it sees something else.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund argon2@0.45.1 node@24.9.0 >/dev/null
python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --target packages argon2-cffi==25.1.0
cat >write.mjs <<'JS'
import { argon2id, hash } from "argon2";
console.log(await hash("correct horse", { type: argon2id, memoryCost: 19456, timeCost: 2, parallelism: 1 }));
JS
written=$(./node_modules/.bin/node write.mjs)
PYTHONPATH=packages python3 - "$written" <<'PY'
import re
import sys
from argon2.low_level import Type, verify_secret

written = sys.argv[1]
found = dict(part.split("=") for part in written.split("$")[3].split(","))
ordered = re.sub(r"\$m=[^$]*\$", "$m={m},t={t},p={p}$".format(**found), written, count=1)

def verdict(text):
    try:
        return "verifies" if verify_secret(text.encode(), b"correct horse", Type.ID) else "does not verify"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

as_written, reordered = verdict(written), verdict(ordered)
print("written:", written.split("$")[3], "->", as_written)
print("in libargon2's order:", ordered.split("$")[3], "->", reordered)
sys.exit(0 if "rror" in as_written and reordered == "verifies" else 1)
PY
