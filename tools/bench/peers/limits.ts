import type { Row } from './bench.ts';

/** What this machine can do at most: what other rows are seen against. */
export const limits: Row = async function* (bench) {
  yield {
    lines: {
      read: { title: 'memory read by all threads', unit: 'GB/s', kind: 'speed' },
      multiply: { title: 'f32 multiplications and additions of all threads', unit: 'GFLOP/s', kind: 'speed' },
    },
    ours: {
      by: 'LLaMA-VID',
      run: async () => {
        const { read, multiply } =
          (await bench.ours<{ read: number; multiply: number }>({ kind: 'limits' })).objects[0] ?? {};
        if (read === undefined || multiply === undefined) throw new Error('the limits were not measured');
        return { read, multiply };
      },
    },
    peers: [],
  };
};
