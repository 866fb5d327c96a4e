#!/bin/sh
# Makes the secrets of deploy/compose.yaml with openssl alone, in deploy/.env (readable by its owner alone), and prints the service token that
# a gateway sends as its bearer: the service holds only its digest.
set -eu
umask 077
file=$(dirname "$0")/.env
if [ -e "$file" ]; then
  echo "$file is there already and is left as it is: with other peppers every key costs an argon2 once, and tokens end. Remove it if that is meant." >&2
  exit 1
fi
token=$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=')
cat >"$file" <<EOF
LATCHKEY_PEPPERS=p1:$(openssl rand -base64 32)
LATCHKEY_REQUEST_KEYS=r1:$(openssl rand -base64 32)
LATCHKEY_JWT_SECRET=$(openssl rand -base64 48 | tr -d '\n')
LATCHKEY_SERVICE_TOKENS=gateway:sha256:$(printf %s "$token" | openssl dgst -sha256 -r | cut -d ' ' -f 1)
EOF
echo "The secrets are in $file. The service token of the caller \"gateway\", shown here alone:" >&2
echo "$token"
