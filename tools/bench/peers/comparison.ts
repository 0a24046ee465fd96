/** Programs that do the same work in turn, and what they took. */
import { ratio, type Spread, spread } from './statistics.ts';

/** A number that is read off each run. */
export interface Line {
  readonly title: string;
  /** What contenders do differently beside the work itself. */
  readonly note?: string;
  readonly unit: string;
  /** Of a speed more is better, of a cost less. */
  readonly kind: 'speed' | 'cost';
  /** What is aimed at: a ratio to the best peer or to the one that is named, or a number by itself. */
  readonly goal?: { readonly ratio: number; readonly to?: string } | { readonly value: number };
}

export interface Contender {
  readonly by: string;
  /** Runs once and gives a number for each line, by its key. */
  readonly run: () => Promise<Readonly<Record<string, number>>>;
}

export interface Comparison {
  readonly lines: Readonly<Record<string, Line>>;
  readonly ours: Contender;
  readonly peers: readonly Contender[];
}

/** A line with the numbers of all runs. */
export interface Measured extends Line {
  readonly ours: readonly number[];
  readonly peers: readonly { readonly by: string; readonly values: readonly number[] }[];
}

/** Runs all contenders in turn, `rounds` times: a busy minute meets each of them. */
export async function compare(
  { lines, ours, peers }: Comparison,
  rounds: number,
  onRun: (by: string, round: number) => void = () => undefined,
): Promise<Measured[]> {
  const contenders = [ours, ...peers];
  const runs = contenders.map((): Readonly<Record<string, number>>[] => []);
  for (let round = 0; round < rounds; round += 1) {
    for (const [index, { by, run }] of contenders.entries()) {
      onRun(by, round);
      runs[index]?.push(await run());
    }
  }
  return Object.entries(lines).map(([key, line]) => {
    const [own = [], ...others] = runs.map((each, index) =>
      each.map((readings) => {
        const value = readings[key];
        if (value === undefined) throw new Error(`${contenders[index]?.by} gave nothing for ${key}`);
        return value;
      }),
    );
    return {
      ...line,
      ours: own,
      peers: others.map((values, index) => ({ by: peers[index]?.by ?? '', values })),
    };
  });
}

/** How a line ended: the peer that did best, the ratio to it, and whether the goal is reached. */
export interface Verdict {
  readonly ours: Spread;
  readonly peers: readonly { readonly by: string; readonly spread: Spread }[];
  /** Of speeds or of costs, ours by that of the peer that the goal names, else of the best one. */
  readonly ratio: Spread | undefined;
  readonly reached: boolean | undefined;
}

export function judge({ kind, goal, ours, peers }: Measured): Verdict {
  const own = spread(ours);
  const others = peers.map(({ by, values }) => ({ by, spread: spread(values) }));
  const ahead = (a: number, b: number) => (kind === 'speed' ? a >= b : a <= b);
  const best = peers.reduce<(typeof peers)[number] | undefined>(
    (best, peer) =>
      best === undefined || !ahead(spread(best.values).median, spread(peer.values).median) ? peer : best,
    undefined,
  );
  const named = goal && 'to' in goal ? peers.find(({ by }) => by === goal.to) : best;
  const against = named && ratio(ours, named.values);
  const value = goal && ('ratio' in goal ? against?.median : own.median);
  const wanted = goal && ('ratio' in goal ? goal.ratio : goal.value);
  const reached = value === undefined || wanted === undefined ? undefined : ahead(value, wanted);
  return { ours: own, peers: others, ratio: against, reached };
}
