// Imported before all else of the command line: what is newer than the Node it runs on would fail by some name that it lacks.

const OLDEST = [22, 12] as const;

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1])) {
  process.stderr.write(
    `Latchkey needs Node ${OLDEST.join(".")} or later, and this is Node ${process.versions.node} (${process.execPath}): install one from https://nodejs.org, or put a newer one first on the PATH.\n`,
  );
  process.exit(1);
}
