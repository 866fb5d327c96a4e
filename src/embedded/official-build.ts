import { DryMongoBinary } from "mongodb-memory-server-core/lib/util/DryMongoBinary.js";
import { MongoBinaryDownload } from "mongodb-memory-server-core/lib/util/MongoBinaryDownload.js";
import type { Progress } from "./progress.ts";

const CONNECT_TIMEOUT_MS = 15_000;

/** Downloads MongoDB's own build for this machine into `folder`, and returns where its mongod lies. */
export async function downloadOfficialBuild(version: string, folder: string, progress: Progress): Promise<string> {
  // Without its look at the distribution, the library knows no build for Linux.
  const options = await DryMongoBinary.generateOptions({ version, downloadDir: folder });
  const download = new QuietDownload({ ...options, checkMD5: true }, progress);
  try {
    return await download.getMongodPath();
  } finally {
    progress.end();
  }
}

/** mongodb-memory-server's download, with our progress, one try, and TLS certificates checked: by itself it checks them only under npm's strict-ssl. */
class QuietDownload extends MongoBinaryDownload {
  constructor(
    options: ConstructorParameters<typeof MongoBinaryDownload>[0],
    private readonly progress: Progress,
  ) {
    super(options);
  }

  override async httpDownload(
    ...[url, options, target, temporary]: Parameters<MongoBinaryDownload["httpDownload"]>
  ): Promise<string> {
    return super.httpDownload(
      url,
      { ...options, rejectUnauthorized: true },
      target,
      temporary,
      1,
      0,
      CONNECT_TIMEOUT_MS,
    );
  }

  override printDownloadProgress(chunk: { length: number }): void {
    this.dlProgress.current += chunk.length;
    this.progress.update(this.dlProgress.current, this.dlProgress.length);
  }
}
