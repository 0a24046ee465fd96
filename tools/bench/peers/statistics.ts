/** The middle of some numbers; of an even count, the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low, high] = [sorted[middle - 1], sorted[middle]];
  if (high === undefined) throw new Error('there is no median of no numbers');
  return sorted.length % 2 === 1 || low === undefined ? high : (low + high) / 2;
}

/** What runs of the same thing gave. */
export interface Spread {
  readonly median: number;
  readonly lowest: number;
  readonly highest: number;
}

export function spread(values: readonly number[]): Spread {
  return { median: median(values), lowest: Math.min(...values), highest: Math.max(...values) };
}

/**
 * How two things compare that ran in turn: the ratio of their medians, and the least and the greatest ratio of two runs that followed
 * each other, which a busy minute changes less than it does the runs.
 */
export function ratio(over: readonly number[], under: readonly number[]): Spread {
  const pairs = over.slice(0, under.length).map((value, round) => value / (under[round] as number));
  return { ...spread(pairs), median: median(over) / median(under) };
}
