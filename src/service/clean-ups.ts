type CleanUp = () => Promise<void> | void;

/** Releases: registered as each thing is acquired. */
export interface CleanUps {
  push(cleanUp: CleanUp): void;
  /** Runs them last-in first-out. Idempotent. */
  release(): Promise<void>;
}

export function createCleanUps(): CleanUps {
  const cleanUps: CleanUp[] = [];
  let released: Promise<void> | undefined;
  const release = async () => {
    for (let cleanUp = cleanUps.pop(); cleanUp !== undefined; cleanUp = cleanUps.pop()) await cleanUp();
  };
  return {
    push: (cleanUp) => void cleanUps.push(cleanUp),
    release: () => {
      released ??= release();
      return released;
    },
  };
}
