/** Numbers that look random and follow from a seed alone. */
export interface Random {
  /** 0 ≤ n < 1 */
  next(): number;
  below(limit: number): number;
  between(from: number, to: number): number;
  pick<T>(items: readonly T[]): T;
  shuffled<T>(items: readonly T[]): T[];
}

/** The same words give the same numbers. */
export function createRandom(...words: (string | number)[]): Random {
  let state = 2_166_136_261;
  for (const character of words.join("/")) state = Math.imul(state ^ character.codePointAt(0)!, 16_777_619);
  // mulberry32
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
  const below = (limit: number) => Math.floor(next() * limit);
  return {
    next,
    below,
    between: (from, to) => from + next() * (to - from),
    pick: (items) => items[below(items.length)]!,
    shuffled(items) {
      const left = [...items];
      return items.map(() => left.splice(below(left.length), 1)[0]!);
    },
  };
}
