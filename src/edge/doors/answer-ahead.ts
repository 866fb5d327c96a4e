/**
 * The answers of `answer`, in the items' order. Up to `limit` items are read and answered ahead of those whose
 * answer was taken, and no more: who takes no answers is not read from. A failure comes in its turn, after the answers
 * before it.
 */
export async function* answerAhead<T, R>(
  items: AsyncIterable<T>,
  limit: number,
  answer: (item: T) => R | Promise<R>,
): AsyncGenerator<R, void> {
  const source = items[Symbol.asyncIterator]();
  let reading: Promise<unknown> = Promise.resolve();
  const next = (): Promise<{ answer: R } | undefined> => {
    const read = reading.then(() => source.next());
    reading = read;
    const answered = read.then(async ({ done, value }) => (done ? undefined : { answer: await answer(value) }));
    // It may fail long before its turn.
    answered.catch(() => {});
    return answered;
  };
  const underWay = Array.from({ length: limit }, next);
  try {
    for (let first = await underWay.shift(); first !== undefined; first = await underWay.shift()) {
      yield first.answer;
      underWay.push(next());
    }
  } finally {
    // Not waited for: it may be in the middle of a read that never ends.
    void source.return?.().catch(() => {});
  }
}
